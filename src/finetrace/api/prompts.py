"""The prompts of an audit and the ways of putting them, from what the user asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from finetrace.api.names import is_bundled
from finetrace.core.errors import BadInput, DataError, nearest, unknown
from finetrace.data.asks import Arm, ask_ids
from finetrace.data.benchmarks import BENCHMARKS, is_benchmark, load_benchmark
from finetrace.data.probes import own_probes
from finetrace.data.prompts import Prompt, identity, read_prompts
from finetrace.data.tokens import chat_template_of

if TYPE_CHECKING:
    from finetrace.api.request import Request
    from finetrace.engine import Answers
    from finetrace.models import Pair

__all__ = ["ARMS", "PROBES", "arms_for", "asked_facts", "problems", "prompts_for", "sources"]

PROBES = "probes"
"""What a user calls our own probes, to put them beside prompts of theirs."""
Name = Literal["default", "none", "user", "own"]
ARMS: tuple[Name, ...] = get_args(Name)
_FILES = (".jsonl", ".ndjson", ".json-lines", ".jsonlines", ".json", ".parquet", ".txt", ".csv")
_OWN_BASE = "tinyworld"


def problems(request: Request) -> list[str]:
    """What can be seen to be wrong with the prompts and arms before anything is read."""
    found = [str(unknown("arm", name, ARMS)) for name in request.arms if name not in ARMS]
    if "user" in request.arms and request.system is None:
        found.append("The arm 'user' is the one with your system prompt: give it with --system.")
    if "own" in request.arms and request.tuned is None:
        found.append("The arm 'own' is the tuned side's chat template, and there is no tuned side.")
    for source in _named(request.prompts):
        found += _problem(str(source))
    return found


def prompts_for(request: Request) -> list[Prompt]:
    """The user's prompts; else the tiny world's own on its base; else finetrace's own probes. With --reveal nothing of
    them is private."""
    found = _prompts(request)
    if not request.reveal:
        return found
    return [replace(prompt, private=False, private_answers=False) for prompt in found]


def sources(prompts: Iterable[Prompt]) -> dict[str, int]:
    """How many prompts come from where; benchmarks with their commit."""
    found: dict[str, int] = {}
    for prompt in prompts:
        found[prompt.source] = found.get(prompt.source, 0) + 1
    return found


def asked_facts(written: Answers | None) -> dict[str, Any]:
    """What the protocol says of prompts and answers; nothing where none were asked for."""
    if written is None:
        return {}
    return {
        "prompts": sources(written.prompts),
        "prompts_sha256": identity(written.prompts),
        "arms": list(written.arms),
        "decoding": asdict(written.decoding),
    }


def arms_for(
    request: Request,
    pair: Pair,
    prompts: Sequence[Prompt] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[Arm, ...]:
    """The headline's arm first (the user's system prompt where there is one, else the template as it is), then those that
    were asked for, and the tuned side's own chat template where it is another than the base's.

    An arm that puts every prompt in the same tokens as one before it is left out, and so is one that the template
    refuses; `tell` says so. Raises DataError where the template refuses the headline's arm.
    """
    template, thinking = request.chat_template, request.thinking
    head = Arm("default", None, template, thinking)
    if request.system is not None:
        head = Arm("user", request.system, template, thinking)
    own = _own(request, pair)
    made: dict[str, Arm | None] = {
        "default": Arm("default", None, template, thinking),
        "none": Arm("none", "", template, thinking),
        "own": own,
    }
    wanted = [name for name in dict.fromkeys(request.arms) if name != head.name]
    if own is not None and template is None and "own" not in wanted:
        wanted.append("own")
    rendered = {head.name: _asked(prompts, pair, head)}
    kept = [head]
    for name in wanted:
        arm = made[name]
        why = "the tuned side has the base's chat template" if arm is None else None
        if arm is not None and why is None:
            why = _left_out(arm, prompts, pair, rendered)
        if why is not None:
            tell(f"The arm '{name}' is left out: {why}.")
        elif arm is not None:
            kept.append(arm)
    if any(arm.name == "own" for arm in kept):
        tell("The tuned side has a chat template of its own: the prompts are also put in it (arm 'own').")
    return tuple(kept)


def _named(prompts: Any) -> list[str | Path]:
    """The sources that are names; none where rows were given in Python."""
    if isinstance(prompts, str | Path):
        return [prompts]
    named = isinstance(prompts, Sequence) and all(isinstance(one, str | Path) for one in prompts)
    return list(prompts) if named else []


def _problem(source: str) -> list[str]:
    name = source.partition("@")[0]
    if source == PROBES or is_benchmark(source) or Path(source).expanduser().exists():
        return []
    if source.startswith((".", "/", "~")) or name.lower().endswith(_FILES):
        return [f"The prompts {source} do not exist: check the path."]
    if "/" not in name:
        near = nearest(name, [*BENCHMARKS, PROBES])
        return [
            f"There is no file and no benchmark '{name}', and a hub data set has two names (org/name).{near}"
        ]
    return []


def _prompts(request: Request) -> list[Prompt]:
    if request.prompts is not None:
        named = _named(request.prompts)
        return _joined(_read(str(one)) for one in named) if named else read_prompts(request.prompts)
    if is_bundled(request.base):
        from finetrace.organisms.prompts import behaviour_prompts

        rows = behaviour_prompts(seed=request.seed)
        return read_prompts(rows, name=_OWN_BASE, private=False, private_answers=False)
    return own_probes()


def _read(source: str) -> list[Prompt]:
    path = Path(source).expanduser()
    if path.exists():
        return read_prompts(path, name=path.name)
    if source == PROBES:
        return own_probes()
    if is_benchmark(source):
        return load_benchmark(source)
    name, _, revision = source.partition("@")
    return read_prompts(name, name=source, revision=revision or None)


def _joined(parts: Iterable[list[Prompt]]) -> list[Prompt]:
    """Prompts of several sources in their order; one that stands in two is kept once."""
    found: dict[str, Prompt] = {}
    for prompt in (prompt for part in parts for prompt in part):
        other = found.setdefault(prompt.id, prompt)
        if other.messages != prompt.messages:
            raise BadInput(
                f"Two prompts have the id '{prompt.id}', one of {other.source} and one of {prompt.source}: give one of "
                "them another id, or leave it out."
            )
    return list(found.values())


def _asked(prompts: Sequence[Prompt], pair: Pair, arm: Arm) -> list[list[int]]:
    return [ask_ids(prompt.messages, pair.tokenizer, arm) for prompt in prompts]


def _left_out(
    arm: Arm, prompts: Sequence[Prompt], pair: Pair, rendered: dict[str, list[list[int]]]
) -> str | None:
    """Why an arm is not run; where it is, its tokens are put to the others'."""
    try:
        asked = _asked(prompts, pair, arm)
    except DataError as error:
        return str(error).rstrip(".")
    for name, other in rendered.items():
        if prompts and other == asked:
            return f"every prompt is the same tokens as in the arm '{name}'"
    if arm.name == "none" and prompts:
        plain = _asked(prompts, pair, replace(arm, name="default", system=None))
        if sum(map(len, asked)) >= sum(map(len, plain)):
            # What an empty system prompt does not shorten held none: at most an empty turn was added.
            return "the chat template writes no system prompt of its own that could be left empty"
    rendered[arm.name] = asked
    return None


def _own(request: Request, pair: Pair) -> Arm | None:
    """The arm of the tuned side's own chat template; None where it has none, or the one that is used anyway."""
    if request.tuned is None:
        return None
    theirs, file = pair.side_tokenizer("tuned"), pair.source("tuned").folder / "chat_template.jinja"
    try:
        if theirs is not pair.tokenizer and theirs.chat_template:
            own = chat_template_of(theirs)[1]
        elif theirs is pair.tokenizer and file.is_file():
            # An adapter may bring a template and no tokenizer.
            own = file.read_text(encoding="utf-8")
        else:
            return None
        used = chat_template_of(pair.tokenizer, request.chat_template)[1]
    except (ValueError, OSError):  # several named templates without a default, or a file that cannot be read
        return None
    return None if own == used else Arm("own", request.system, own, request.thinking)
