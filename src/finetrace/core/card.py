"""What a method says of itself, and how methods are found. Imports nothing heavy."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, Final, Literal

from finetrace.core.errors import unknown

GROUP = "finetrace.methods"
ALL: Final = "all"
_NAME = re.compile(r"^[a-z][a-z0-9_]*$")
# What importing a stranger's card can raise: listed, so that a bug of ours is not mistaken for theirs.
_CARD_ERRORS = (
    ImportError,
    AttributeError,
    TypeError,
    ValueError,
    NameError,
    SyntaxError,
    OSError,
    RuntimeError,
)


@dataclass(frozen=True)
class Needs:
    """What a method wants of the pass: the only statement of it.

    logits: whether it sees logit chunks. lens: None for the models' own logits; else the layer whose residual stream they
    are read from, through each side's final norm and head. layers: residual-stream layers, as ints or relative floats in
    [0, 1], or ALL. slices: the slices it reads, or None for all of them.

    The rest is for a method with `run`. calibration: supervised sets that it asks of the desk ("safety", "utility",
    "placebo") and cannot do without. optional: sets that it uses where they are given. floor: whether it also runs on the
    base against itself. dosed: whether it also runs on nulls at the pair's dose; not where scaling a change moves nothing.
    passes: how often it reads its calibration sets on one contrast, in forwards (a forward and its backward are three).
    prompts: whether it asks the desk for prompts. answers: whether it also asks for both sides' answers to them. judged:
    whether judges that the user named may be asked about them. nulls: whether it also runs on the nulls. steps: whether its
    `run` reads the texts through the desk (to train on them, say). labels: how many latents, of the pair alone, a model that
    the user named is to label; a method that asks for any has them as its option `labels`.
    """

    logits: bool = False
    lens: int | float | None = None
    layers: tuple[int | float, ...] | Literal["all"] = ()
    slices: tuple[str, ...] | None = None
    calibration: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    floor: bool = False
    dosed: bool = True
    passes: int = 3
    prompts: bool = False
    answers: bool = False
    judged: bool = False
    nulls: bool = True
    steps: bool = False
    labels: int = 0


@dataclass(frozen=True)
class Measure:
    """A number of a method that answers whether something got worse: larger is worse.

    key: of the number (a difference to the base, with an interval). margin: how much worse is still accepted. about: what
    it speaks of. asks: the prompts that it is a share of: those to be refused, those to be answered, or those with a
    reference; "" for what is no share of prompts.
    """

    key: str
    margin: float
    about: Literal["safety", "capability"] = "safety"
    asks: Literal["refuse", "answer", "reference", ""] = ""


@dataclass(frozen=True)
class Method:
    """A method's card.

    primary: the key of the number that the change verdict is about; None for a method that gives no change verdict.
    margin: the ratio to the nulls that a change must exceed. verdict_on: the slices that the change verdict is about, where
    others are parts of them; () for all. levels: numbers of each side and not of the difference: the noise floor does not
    speak of them. work: multiplications of its own on one contrast, beside forwards, by its options, the tokens and the
    width of the hidden states, for who asks what a run would cost; None for few. measures: the numbers that the safety and
    capability verdicts are about. keys: every number that it reports and its unit, for those who list or check names without a result; () says
    nothing. home: the package it lives in, filled in when it is found.
    """

    name: str
    version: int
    summary: str
    config: type
    needs: Callable[[Any], Needs]
    primary: str | None
    margin: float = 2.0
    measures: tuple[Measure, ...] = ()
    keys: tuple[tuple[str, str], ...] = ()
    papers: tuple[str, ...] = ()
    verdict_on: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    work: Callable[[Any, int, int], float] | None = None
    home: str = ""

    def part(self, name: str) -> ModuleType:
        """The method's module `name` (observe, result, describe, ...), imported now."""
        return importlib.import_module(f"{self.home}.{name}")

    def has(self, name: str) -> bool:
        """Whether the method has the optional module `name`."""
        return importlib.util.find_spec(f"{self.home}.{name}") is not None

    @property
    def observes(self) -> bool:
        """Whether it sees the steps of the pass."""
        return self.has("observe")

    @property
    def runs(self) -> bool:
        """Whether it computes on its own, after the pass."""
        return self.has("run")


@dataclass(frozen=True)
class Broken:
    """A method whose card could not be read, and why."""

    name: str
    error: str


def discover(package: str = GROUP) -> tuple[dict[str, Method], tuple[Broken, ...]]:
    """The methods in the folder `package`, then those installed under the entry-point group `finetrace.methods`.

    A card that cannot be read is returned as broken; it hides no other. A foreign card never replaces one of ours.
    """
    found: dict[str, Method] = {}
    broken: list[Broken] = []
    folder = importlib.import_module(package)
    homes = [(m.name, f"{package}.{m.name}") for m in pkgutil.iter_modules(folder.__path__) if m.ispkg]
    homes += [(e.name, e.value.split(":")[0]) for e in entry_points(group=GROUP)]
    for name, home in homes:
        card = _read_card(name, home)
        if isinstance(card, Broken):
            broken.append(card)
        else:
            found.setdefault(card.name, card)
    return dict(sorted(found.items())), tuple(broken)


def _read_card(name: str, home: str) -> Method | Broken:
    try:
        card = importlib.import_module(home).METHOD
    except _CARD_ERRORS as error:
        return Broken(name, f"{type(error).__name__}: {error}")
    if not isinstance(card, Method):
        return Broken(name, f"METHOD is a {type(card).__name__}, not a finetrace.core.card.Method")
    if not _NAME.match(card.name):
        return Broken(name, f"'{card.name}' is not a name in lower-case letters, digits and underscores")
    return replace(card, home=home)


def method(name: str) -> Method:
    """The method called `name`; an unknown one is a BadInput that names its nearest neighbour."""
    found, broken = discover()
    if name in found:
        return found[name]
    for card in broken:
        if card.name == name:
            raise unknown("working method", f"{name} (broken: {card.error})", found)
    raise unknown("method", name, found)
