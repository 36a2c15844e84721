"""A request's pair, opened: the one place where its options reach the models."""

from __future__ import annotations

from finetrace.api.names import null_sources, resolve
from finetrace.api.request import Request
from finetrace.models import Pair, open_pair


def open_request(request: Request) -> Pair:
    return open_pair(
        resolve(request.base),
        resolve(request.tuned) if request.tuned is not None else None,
        nulls={name: resolve(source) for name, source in null_sources(request.nulls).items()},
        dtype=request.dtype,
        device=request.device,
        device_map=request.device_map,
        quantization=request.quantization,
        revision=request.revision,
        tuned_revision=request.tuned_revision,
        attn_implementation=request.attn_implementation,
        tokenizer=resolve(request.tokenizer) if request.tokenizer is not None else None,
        chat_template=request.chat_template,
        trust_remote_code=request.trust_remote_code,
    )
