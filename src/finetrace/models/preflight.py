"""Pre-flight: what about the two sides' surroundings could make a difference that is not the fine-tune's."""

from __future__ import annotations

from typing import Any

from finetrace.core.chat import has_switch, opens_thought
from finetrace.core.errors import ModelError
from finetrace.core.files import read_json
from finetrace.core.findings import Check
from finetrace.models.assembly import BASE, TUNED
from finetrace.models.identity import identity, tensors_identity
from finetrace.models.pair import Pair
from finetrace.models.source import Source, one_line

RECORD = "finetrace.json"
_GENERATION = (
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "eos_token_id",
    "do_sample",
    "max_new_tokens",
)


def preflight(pair: Pair, *, thinking: bool = False) -> tuple[Check, ...]:
    """One check a line for the tuned side, and whatever is not in order with a null. thinking: the template is asked to let
    the models think.

    An adapter whose recorded base hash disagrees with this base is a ModelError.
    """
    checks = [
        _vocabulary(pair, TUNED),
        _chat_template(pair, TUNED),
        *_thinking(pair, thinking),
        _bos(pair, TUNED),
        _special_tokens(pair, TUNED),
        _generation(pair),
        _dtype(pair),
        _quantised(pair),
        _trained_on(pair, TUNED),
        *_layers(pair, TUNED),
    ]
    for side in pair.sides[2:]:
        found = (_vocabulary(pair, side), _trained_on(pair, side), *_layers(pair, side))
        checks += [Check(f"{c.name} of the null {side}", c.status, c.text) for c in found if c.status != "ok"]
    return tuple(checks)


def _vocabulary(pair: Pair, side: str) -> Check:
    found = pair.alignment(side)
    if found is None or not (found.only_base or found.only_side or found.to_side is not None):
        return Check("vocabulary", "ok", f"The same {pair.vocab_size} tokens on both sides.")
    parts = [f"{found.size} tokens are shared, aligned by their strings."]
    for owner, names in (("the base", found.only_base), (f"'{side}'", found.only_side)):
        if names:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            parts.append(f"Only {owner} has {', '.join(map(repr, names[:8]))}{more}.")
    return Check("vocabulary", "note", " ".join(parts))


def _chat_template(pair: Pair, side: str) -> Check:
    name = "chat template"
    if pair.plan.chat_template is not None:
        return Check(name, "note", "The chat template that was given is used on both sides.")
    used = pair.tokenizer.chat_template
    theirs = pair.side_tokenizer(side).chat_template
    own = _own_template(pair, BASE)
    if used is None:
        return Check(
            name,
            "note",
            "Neither side has a chat template: conversations are read in a plain one (User: …, Assistant: …).",
        )
    if own is None:
        return Check(name, "note", f"The base has no chat template; that of '{side}' is used on both sides.")
    if theirs is not None and theirs != own:
        return Check(
            name, "warning", f"'{side}' has another chat template; the base's is used on both sides."
        )
    return Check(name, "ok", "The same on both sides.")


def _thinking(pair: Pair, wanted: bool) -> tuple[Check, ...]:
    """Nothing where no thinking is asked for and the template begins none."""
    name, tokenizer = "thinking", pair.tokenizer
    if has_switch(tokenizer):
        asked = "to think before it answers" if wanted else "not to think"
        return (Check(name, "ok", f"The chat template is asked {asked}, on both sides."),)
    if wanted:
        text = "The chat template has no switch for thinking, so that asking for it changes nothing."
        return (Check(name, "warning", text),)
    if opens_thought(tokenizer):
        text = "The chat template begins every answer with a thought, and has no switch for that."
        return (Check(name, "note", text),)
    return ()


def _own_template(pair: Pair, side: str) -> str | None:
    """The chat template in the side's own files."""
    from finetrace.models.tokens import has_tokenizer, load_tokenizer

    source = pair.source(side)
    if pair.plan.tokenizer is not None or not has_tokenizer(source.folder):
        return pair.side_tokenizer(side).chat_template
    return load_tokenizer(source.name, source.folder, pair.plan.trust_remote_code).chat_template


def _bos(pair: Pair, side: str) -> Check:
    base, theirs = pair.tokenizer, pair.side_tokenizer(side)
    puts, other = (_adds_bos(t) for t in (base, theirs))
    if puts != other:
        who = "the base's" if puts else f"that of '{side}'"
        return Check(
            "BOS", "warning", f"Only {who} tokenizer puts a BOS first; both sides are read with the base's."
        )
    if base.bos_token is None:
        return Check("BOS", "ok", "The tokenizer has no BOS token.")
    text = "by the tokenizer" if puts else "added here: the tokenizer has one but does not put it"
    return Check("BOS", "ok", f"{base.bos_token!r} comes first, {text}.")


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer.encode("a")
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _special_tokens(pair: Pair, side: str) -> Check:
    base, theirs = (t.special_tokens_map for t in (pair.tokenizer, pair.side_tokenizer(side)))
    other = [key for key in sorted({*base, *theirs}) if str(base.get(key)) != str(theirs.get(key))]
    if not other:
        return Check("special tokens", "ok", "The same on both sides.")
    text = "; ".join(f"{key}: {base.get(key)} on the base, {theirs.get(key)} on '{side}'" for key in other)
    return Check("special tokens", "note", f"They differ: {text}.")


def _generation(pair: Pair) -> Check:
    name = "generation config"
    base, theirs = (_generation_fields(pair.source(side)) for side in (BASE, TUNED))
    if pair.kind(TUNED) != "full" or base == theirs:
        return Check(name, "ok", "The same on both sides.")
    keys = ", ".join(key for key in _GENERATION if base.get(key) != theirs.get(key))
    return Check(
        name, "note", f"The two sides' defaults differ in {keys}; comparisons use one setting for both."
    )


def _generation_fields(source: Source) -> dict[str, Any]:
    path = source.folder / "generation_config.json"
    try:
        fields = read_json(path) if path.is_file() else {}
    except ValueError as error:
        raise ModelError(f"{path} is not readable JSON: {one_line(error)}") from None
    return {key: fields[key] for key in _GENERATION if key in fields}


def _dtype(pair: Pair) -> Check:
    kind = str(pair.dtype).removeprefix("torch.")
    if kind == "float32":
        return Check("dtype", "ok", "float32 on both sides.")
    text = f"{kind} on both sides: its rounding alone moves KL by up to some 1e-3; read figures against the floor."
    return Check("dtype", "note", text)


def _quantised(pair: Pair) -> Check:
    name = "quantised base"
    sides = [side for side in (BASE, TUNED) if pair.kind(side) != "adapter"]
    methods = {side: (pair.config(side).to_dict().get("quantization_config") or {}) for side in sides}
    found = {side: fields.get("quant_method", "unknown") for side, fields in methods.items() if fields}
    if not found:
        return Check(name, "ok", "No.")
    if len(found) < len(sides) and pair.kind(TUNED) == "full":
        side, method = next(iter(found.items()))
        return Check(
            name, "warning", f"Only '{side}' is quantised ({method}): its rounding is read as a change."
        )
    return Check(
        name, "note", f"Yes ({', '.join(sorted(set(found.values())))}): its rounding is on both sides."
    )


def _trained_on(pair: Pair, side: str) -> Check:
    """Was the adapter trained on this base? A recorded hash decides; else names are compared."""
    name = "adapter's base"
    config = pair.adapter_config(side)
    if config is None:
        return Check(name, "ok", "Not an adapter.")
    recorded = recorded_base(pair.source(side))
    base = pair.source(BASE)
    if recorded is not None:
        if recorded not in (identity(base), tensors_identity(base)):
            raise ModelError(
                f"The adapter {pair.source(side).name} records that it was trained on another base "
                f"(SHA-256 {recorded[:12]}…) than {base.name} ({identity(base)[:12]}…): give the base it was trained on."
            )
        return Check(name, "ok", "Trained on this very base (its recorded hash agrees).")
    said = config.get("base_model_name_or_path")
    if said and _last(said).lower() == _last(base.name).lower():
        return Check(
            name, "ok", f"It names {_last(said)}; no hash is recorded, so only the name was compared."
        )
    named = _last(said) if said else "no base"
    text = f"It names {named}, and the base given is {_last(base.name)}: on another base its effect means little."
    return Check(name, "warning", text)


def _layers(pair: Pair, side: str) -> tuple[Check, ...]:
    """Nothing of a side whose blocks are all read."""
    gone = len(pair.source(side).left_out)
    if not gone:
        return ()
    text = (
        f"{gone} identity layers of the {pair.n_layers + gone} of '{side}' were left out: their outputs are zero, so "
        "that each adds exactly nothing."
    )
    return (Check("layers", "note", text),)


def recorded_base(source: Source) -> str | None:
    """The base's SHA-256 that finetrace.json beside an adapter records, if it does."""
    path = source.folder / RECORD
    if not path.is_file():
        return None
    try:
        found = read_json(path)
    except ValueError as error:
        raise ModelError(f"{path} is not readable JSON: {one_line(error)}") from None
    value = found.get("base_sha256") if isinstance(found, dict) else None
    return value if isinstance(value, str) else None


def _last(name: str) -> str:
    return name.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
