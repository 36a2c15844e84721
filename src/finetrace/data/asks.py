"""A conversation as the tokens that an answer follows: the one place where a request becomes a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from finetrace.core.chat import prompt_ids, split_thought
from finetrace.core.errors import DataError
from finetrace.data.rows import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Arm", "ask_ids", "conversation", "split_thought"]


@dataclass(frozen=True)
class Arm:
    """One way of putting the same requests to a model.

    name: "default" (as the template does it), "none" (an empty system prompt where the template would write its own),
    "user" (the user's system prompt), "own" (the tuned side's own chat template). system: the system prompt; None leaves
    it to the template. template: a chat template, or None for the tokenizer's. thinking: the template is asked to let the
    model think first.
    """

    name: Literal["default", "none", "user", "own"] = "default"
    system: str | None = None
    template: str | None = None
    thinking: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """All that moves an answer; thinking only where it is asked for."""
        own = asdict(self)
        return own if self.thinking else {key: value for key, value in own.items() if key != "thinking"}


def ask_ids(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, arm: Arm) -> list[int]:
    """Token ids up to where the assistant's answer begins, BOS first if the tokenizer has one (never twice).

    Templates that can switch thinking are asked to switch it as the arm says. Raises DataError where the template refuses
    the conversation.
    """
    chat = [{"role": m.role, "content": m.content} for m in conversation(messages, arm)]
    try:
        return prompt_ids(chat, tokenizer, arm.template, thinking=arm.thinking)
    except DataError as error:
        raise DataError(
            f"The chat template refused a prompt in the arm '{arm.name}': {error.__cause__}"
        ) from error


def conversation(messages: Sequence[Message], arm: Arm) -> tuple[Message, ...]:
    """The messages with the arm's system prompt before them, unless they have one."""
    if arm.system is None or any(m.role == "system" for m in messages):
        return tuple(messages)
    return (Message("system", arm.system), *messages)
