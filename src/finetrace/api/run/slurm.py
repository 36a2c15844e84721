"""`infrastructure=slurm`: the run as a batch script, which starts Ray on the nodes that it gets, and its submission."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from finetrace.api.run.spec import base_dir
from finetrace.config.tree import RunConfig
from finetrace.core.errors import BadInput, ConfigErrors
from finetrace.core.files import write_text
from finetrace.core.runkey import digest
from finetrace.core.shelf import slug

__all__ = ["Submitted", "script_for", "submit"]

KIND = "slurm"
_WORD = re.compile(r"[\w.,+-]+")
_IN_A_DIRECTIVE = re.compile(r'[^\x00-\x1f"\\]+')


@dataclass(frozen=True)
class Submitted:
    """script: the file. job: the number that SLURM gave it; None where there is no `sbatch` on this machine."""

    script: Path
    job: str | None

    def __str__(self) -> str:
        if self.job is None:
            return (
                f"There is no sbatch on this machine. Where there is: sbatch {shlex.quote(str(self.script))}"
            )
        return f"Job {self.job}: {self.script} (its log will be beside it; squeue -j {self.job})"


def submit(config: RunConfig, arguments: Sequence[str]) -> Submitted:
    """Writes the script below `<out>/slurm/` and submits it, if this machine can. arguments: of `finetrace run`, as typed."""
    script = _path(config, arguments)
    write_text(script, script_for(config, arguments), mode=0o700)
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        return Submitted(script, None)
    done = subprocess.run([sbatch, "--parsable", str(script)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BadInput(f"sbatch refused {script}: {' '.join(done.stderr.split()) or 'it gave no reason'}")
    return Submitted(script, done.stdout.strip().partition(";")[0])


def script_for(config: RunConfig, arguments: Sequence[str]) -> str:
    """A bash script for sbatch. Every word is quoted; only `infrastructure.slurm.setup` is code, and the user's own."""
    slurm = config.infrastructure.slurm
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{option}" for option in _directives(config, arguments)),
        "set -euo pipefail",
        f"cd -- {shlex.quote(str(Path.cwd()))}",
        *slurm.setup,
        # A worker has as many threads as it has cores; results depend on the number in their last bits.
        f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{max(1, ceil(config.infrastructure.ray.cpus))}}}"',
    ]
    python = shlex.quote(sys.executable)
    # Workers beside the run's own process would share its one GPU.
    kind = "local" if slurm.nodes == slurm.gpus_per_node == 1 else "ray"
    command = shlex.join(
        [sys.executable, "-m", "finetrace", "run", *arguments, f"infrastructure.kind={kind}"]
    )
    if slurm.nodes == 1:
        lines.append(command)
        return "\n".join(lines) + "\n"
    lines += [
        f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"',
        'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
        'mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        'address="${nodes[0]}:$((20000 + SLURM_JOB_ID % 20000))"',
        "# Without it whoever reaches the ports could run code as you.",
        f"RAY_AUTH_TOKEN=$({python} -c 'import secrets; print(secrets.token_hex(32))')",
        "export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0",
        'srun --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" --ntasks-per-node=1 \\',
        '  ray symmetric-run --address "$address" --min-nodes "${#nodes[@]}" \\',
        f'  --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus {slurm.gpus_per_node} -- \\',
        f'  {command} "infrastructure.ray.address=$address"',
    ]
    return "\n".join(lines) + "\n"


def _path(config: RunConfig, arguments: Sequence[str]) -> Path:
    """Named after what it runs; the same words write the same file again."""
    name = slug("-".join((config.organism.name, config.model.name, *config.diffing.methods)))
    folder = base_dir(config).resolve() / "slurm"
    return folder / f"{name}-{digest([*arguments])[:8]}.sbatch"


def _directives(config: RunConfig, arguments: Sequence[str]) -> Iterator[str]:
    slurm, script = config.infrastructure.slurm, _path(config, arguments)
    given = {"partition": slurm.partition, "account": slurm.account}
    wrong = [
        f"infrastructure.slurm.{name} is {value!r}: letters, digits and . , + - _ only."
        for name, value in given.items()
        if value is not None and not _WORD.fullmatch(value)
    ]
    log = str(script.with_suffix("")).replace("%", "%%")
    if not _IN_A_DIRECTIVE.fullmatch(log):
        wrong.append(f"out is {str(script.parent.parent)!r}: SLURM takes no such characters in a path.")
    if wrong:
        raise ConfigErrors(wrong)
    yield f"job-name=finetrace-{script.stem}"
    yield f'output="{log}-%j.log"'
    yield f"nodes={slurm.nodes}"
    yield "ntasks-per-node=1"
    yield f"cpus-per-task={slurm.cpus_per_task}"
    if slurm.gpus_per_node:
        yield f"gpus-per-node={slurm.gpus_per_node}"
    if slurm.mem_gb is not None:
        yield f"mem={slurm.mem_gb}G"
    yield f"time={slurm.time}"
    for name, value in given.items():
        if value is not None:
            yield f"{name}={value}"
