"""The batch script: what it asks for, that nothing in it is more than a word, and that the run in it is the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetrace.api.run.slurm import script_for, submit
from finetrace.config.run import compose_runs
from finetrace.config.tree import RunConfig
from finetrace.core.errors import BadInput, ConfigErrors

WORDS = ("organism=refusal_erosion", "model=tinyworld", "diffing/method=kl", "infrastructure=slurm")


def compose(*words: str) -> tuple[RunConfig, tuple[str, ...]]:
    said = (*WORDS, *words)
    ((config, _),) = compose_runs(said, None, False)
    return config, said


def tool(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text("#!/bin/bash\n" + text)
    path.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder before all others on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_script_is_submitted_and_its_number_told(path: Path, tmp_path: Path):
    tool(path, "sbatch", f'printf "%s\\n" "$@" > {tmp_path}/asked; echo "4711;cluster"\n')
    config, said = compose("out=results", "infrastructure.slurm.partition=gpu")
    found = submit(config, said)
    assert found.job == "4711"
    assert found.script.parent == tmp_path / "results" / "slurm"
    assert (tmp_path / "asked").read_text().split() == ["--parsable", str(found.script)]
    assert "Job 4711" in str(found)
    assert submit(config, said).script == found.script, "the same words, the same file"
    lines = found.script.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    assert "#SBATCH --partition=gpu" in lines
    assert "#SBATCH --gpus-per-node=1" in lines
    assert not [line for line in lines if "--mem" in line or "--account" in line], "left to the cluster"


def test_a_refusal_is_told_in_one_line(path: Path):
    tool(path, "sbatch", 'echo "sbatch: error: invalid partition" >&2\necho "  specified: gpu" >&2\nexit 1\n')
    with pytest.raises(
        BadInput, match=r"sbatch refused .*: sbatch: error: invalid partition specified: gpu$"
    ):
        submit(*compose())


def test_without_sbatch_the_file_is_ready(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(path))
    found = submit(*compose())
    assert found.job is None
    assert f"sbatch {found.script}" in str(found)
    assert found.script.is_file()


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_run_in_it_is_the_run_word_for_word(path: Path, tmp_path: Path, nodes: int):
    """Executed with tools that only write down what they are given."""
    evil = f"system='a b; touch {tmp_path}/harm $(touch {tmp_path}/harm) `touch {tmp_path}/harm` \"'"
    config, said = compose(
        evil, f"infrastructure.slurm.nodes={nodes}", "infrastructure.slurm.gpus_per_node=4"
    )
    text = script_for(config, said)
    note = f'printf "%s\\0" "$@" > {tmp_path}/ran\n'
    tool(path, Path(sys.executable).name, f'case "$1" in -c) echo secret;; *) {note};; esac\n')
    tool(
        path,
        "srun",
        f'printf "%s\\0" "$@" > {tmp_path}/started; while [[ $1 != -- ]]; do shift; done; "${{@:2}}"\n',
    )
    tool(path, "scontrol", "echo one; echo two\n")
    script = tmp_path / "script"
    script.write_text(text.replace(str(Path(sys.executable).parent), str(path)))
    cluster = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "20007", "SLURM_CPUS_PER_TASK": "8"}
    subprocess.run(["bash", str(script)], check=True, timeout=60, env={**os.environ, **cluster})
    ran = (tmp_path / "ran").read_text().split("\0")[:-1]
    own = ["infrastructure.kind=ray"] + ["infrastructure.ray.address=one:20007"] * (nodes == 2)
    assert ran == ["-m", "finetrace", "run", *said, *own]
    assert not (tmp_path / "harm").exists()
    ((again, _),) = compose_runs(ran[3:], None, False)
    assert again.infrastructure.kind == "ray"
    assert again.system == config.system
    if nodes == 2:
        started = (tmp_path / "started").read_text().split("\0")
        wanted = ["--address", "one:20007", "--min-nodes", "2", "--num-cpus", "8", "--num-gpus", "4"]
        assert started[started.index("symmetric-run") + 1 :][: len(wanted)] == wanted


def test_one_gpu_is_not_shared_by_two_processes():
    config, said = compose()
    assert script_for(config, said).splitlines()[-1].endswith("infrastructure.kind=local")


def test_what_would_be_another_directive_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    config, said = compose(
        r"infrastructure.slurm.account='me --exclusive'", "infrastructure.slurm.partition=a/b"
    )
    with pytest.raises(ConfigErrors) as caught:
        script_for(config, said)
    assert len(caught.value.problems) == 2
    config, said = compose(f"out='{tmp_path}/a\"b'")
    with pytest.raises(ConfigErrors, match="no such characters"):
        script_for(config, said)
    config, said = compose(f"out='{tmp_path}/50% of it'")
    assert f'#SBATCH --output="{tmp_path}/50%% of it/slurm/' in script_for(config, said)


def test_setup_is_the_users_own_shell(path: Path):
    config, said = compose("infrastructure.slurm.setup=[module load cuda,'source ~/venv/bin/activate']")
    lines = script_for(config, said).splitlines()
    assert lines[lines.index("module load cuda") + 1] == "source ~/venv/bin/activate"
