"""The streaming half: one reading of the logit differences feeds counts, sample, densities, spans and per-text sums."""

from __future__ import annotations

from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from finetrace.engine import LogitChunk, Step, Subject
from finetrace.methods.diff_mining import Config
from finetrace.methods.diff_mining.counts import Counts
from finetrace.methods.diff_mining.extremes import Rises, by_size, cell_width, rises
from finetrace.methods.diff_mining.result import Result
from finetrace.methods.diff_mining.sample import Sample
from finetrace.methods.diff_mining.spans import Spans
from finetrace.methods.diff_mining.summarise import summarise
from finetrace.methods.diff_mining.texts import Texts
from finetrace.methods.diff_mining.variants import groups, once

# Numbers in a block of rows: 1 MB of float32, so that the passes over it stay in a CPU's cache; at least so many rows.
_BLOCK, _FEWEST_ROWS = 2**18, 8


def observer(config: Config, subject: Subject) -> DiffMining:
    return DiffMining(config, subject)


class DiffMining:
    """Holds what `Result` is made of. Sums in float64 (of float32 sums over at most a chunk), counts in int64."""

    def __init__(self, config: Config, subject: Subject) -> None:
        known, slices = subject.vocabulary, len(subject.slices)
        self._config, self._subject = config, subject
        masked = (known.special & config.mask_special) | (known.dead & config.mask_dead)
        self._masked = torch.from_numpy(masked.nonzero()[0])
        allowed = torch.from_numpy(~masked).float()
        self._weight = allowed / allowed.sum().clamp(min=1)
        self._word = torch.from_numpy(groups(known.texts, config.merge_variants))
        self._k = max(1, min(config.top_k, int(allowed.sum())))
        self._counts = Counts(slices, subject.vocab_size)
        self._sample = Sample(config.topic_positions, self._k, subject.seed)
        self._spans = Spans(config.span, config.stride, config.spans, slices)
        self._texts = Texts()
        self._open: _Open | None = None

    def see(self, step: Step) -> None:
        self._close()
        self._open = _Open(step)

    def see_logits(self, chunk: LogitChunk) -> None:
        if self._open is None:
            raise RuntimeError("see_logits before see")
        mean = chunk.difference @ self._weight.to(chunk.difference.device)
        finite = mean.isfinite()
        where = chunk.slice.cpu()
        if not bool(finite.all()):
            lost = where[~finite.cpu()]
            self._counts.book_slices("unscored", lost, torch.ones_like(lost))
        if not bool(finite.any()):
            return
        kept = slice(None) if bool(finite.all()) else finite
        up, down = self._read(chunk.difference[kept], mean[kept], where[finite.cpu()])
        self._book(self._open, chunk, kept, up, down)

    def _read(
        self,
        difference: Float[Tensor, "token vocab"],
        mean: Float[Tensor, " token"],
        where: Int[Tensor, " token"],
    ) -> tuple[Rises, Rises]:
        """Centres blocks of rows; sums them by slice, and finds the largest rises and falls of every row."""
        tokens, vocab = difference.shape
        width = cell_width(vocab)
        padded = -(-vocab // width) * width
        size = max(_FEWEST_ROWS, _BLOCK // padded)
        block = difference.new_zeros(min(size, tokens), padded)
        masked = self._masked.to(difference.device)
        present, place = where.unique(return_inverse=True)
        owner = torch.nn.functional.one_hot(place.to(difference.device), len(present)).to(difference.dtype).T
        shift, positive = (difference.new_zeros(len(present), padded) for _ in range(2))
        ups: list[Rises] = []
        downs: list[Rises] = []
        for start in range(0, tokens, size):
            rows = slice(start, start + size)
            x = block[: len(mean[rows])]
            torch.sub(difference[rows], mean[rows, None], out=x[:, :vocab])
            # At exactly 0, what is masked neither rises nor falls; so does the padding.
            x.index_fill_(1, masked, 0.0)
            shift.addmm_(owner[:, rows], x)
            ups.append(rises(x, self._k))
            downs.append(rises(x.neg_(), self._k))
            positive.addmm_(owner[:, rows], x.lt_(0))
        self._counts.book_moves(present, shift[:, :vocab], positive[:, :vocab])
        up, down = _joined(ups), _joined(downs)
        return (by_size(up), by_size(down)) if self._config.merge_variants else (up, down)

    def _book(self, opened: _Open, chunk: LogitChunk, kept: slice | Tensor, up: Rises, down: Rises) -> None:
        where, row, position = (x[kept].cpu() for x in (chunk.slice, chunk.batch_row, chunk.position))
        counts = self._counts
        counts.book_slices("positions", where, torch.ones_like(where))
        counts.book_slices("kl", where, chunk.kl[kept].cpu())
        counts.book_slices("reverse_kl", where, chunk.reverse_kl[kept].cpu())
        for name, side, of_base in (("kl_up", up, False), ("kl_down", down, True)):
            values = _contributions(chunk, kept, side.ids, of_base)
            counts.book_entries(name, where[:, None], self._words(side.ids), values)
            if self._config.merge_variants:
                counts.book_entries("as_spelt", where[:, None], side.ids, torch.ones_like(side.ids))
        opened.ratio[chunk.batch_row, chunk.position] = -chunk.delta_nll
        opened.book(row, (up.values.sum(1) / self._k, down.values.sum(1) / self._k))
        words_up, words_down = (self._counted(side.ids) for side in (up, down))
        vocab = self._subject.vocab_size
        opened.up.append(_flat(row, words_up, vocab))
        opened.down.append(_flat(row, words_down, vocab))
        counts.book_density(where, position, up.values)
        self._sample.offer(
            opened.step.key[row.numpy()],
            where.numpy(),
            position.numpy(),
            words_up.numpy(),
            up.values.where(words_up >= 0, 0.0).numpy(),
        )

    def _words(self, ids: Int[Tensor, "token k"]) -> Int[Tensor, "token k"]:
        """The column that stands for each entry's word."""
        return self._word[ids.clamp(min=0)].where(ids >= 0, -1) if self._config.merge_variants else ids

    def _counted(self, ids: Int[Tensor, "token k"]) -> Int[Tensor, "token k"]:
        return once(self._words(ids)) if self._config.merge_variants else ids

    def _close(self) -> None:
        """Books the open step: what is counted per text, and its windows."""
        if self._open is None:
            return
        opened, self._open = self._open, None
        shape = (len(opened.step.row), self._subject.vocab_size)
        up, down = (
            torch.bincount(
                torch.cat([torch.zeros(0, dtype=torch.int64), *parts]), minlength=shape[0] * shape[1]
            )
            for parts in (opened.up, opened.down)
        )
        self._counts.book_texts(opened.step.slice.cpu(), up.view(shape), down.view(shape))
        self._spans.offer(opened.step, opened.ratio)
        self._texts.add(opened.step, opened.sums, opened.counts)

    def merge(self, later: Self) -> None:
        self._close()
        later._close()
        self._counts.merge(later._counts)
        self._sample.merge(later._sample)
        self._spans.merge(later._spans)
        self._texts.merge(later._texts)

    def state(self) -> dict[str, Tensor]:
        self._close()
        parts = (self._counts, self._sample, self._spans, self._texts)
        return {name: tensor for part in parts for name, tensor in part.state().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._open = None
        for part in (self._counts, self._sample, self._spans, self._texts):
            part.restore(state)

    def result(self) -> Result:
        self._close()
        return summarise(
            self._config,
            self._subject,
            counts=self._counts,
            sample=self._sample.columns(),
            spans=self._spans,
            texts=self._texts.columns(),
            k=self._k,
        )


class _Open:
    """The step whose chunks are coming in. ratio: log p_tuned - log p_base of the next tokens, NaN where unknown.

    up, down: a number text x vocabulary + token for every entry of a top K. sums: per text, means of the K largest rises
    and of the K largest falls, summed over positions.
    """

    def __init__(self, step: Step) -> None:
        texts = len(step.row)
        self.step = step
        self.ratio = torch.full(step.ids.shape, torch.nan, device=step.ids.device)
        self.up: list[Tensor] = []
        self.down: list[Tensor] = []
        self.sums = torch.zeros(texts, 2, dtype=torch.float64)
        self.counts = torch.zeros(texts, dtype=torch.int64)

    def book(self, row: Int[Tensor, " token"], sizes: tuple[Tensor, Tensor]) -> None:
        self.sums.index_add_(0, row, torch.stack(sizes, 1).double())
        self.counts.index_add_(0, row, torch.ones_like(row))


def _joined(parts: list[Rises]) -> Rises:
    return Rises(torch.cat([p.values for p in parts]), torch.cat([p.ids for p in parts]))


def _flat(row: Int[Tensor, " token"], ids: Int[Tensor, "token k"], vocab: int) -> Int[Tensor, " entry"]:
    return (row[:, None] * vocab + ids)[ids >= 0]


def _contributions(
    chunk: LogitChunk, kept: slice | Tensor, ids: Int[Tensor, "token k"], of_base: bool
) -> Float[Tensor, "token k"]:
    """p log(p_tuned / p_base) of each entry, nats: p is p_tuned, or p_base for falls, where p_tuned would hide the size."""
    at = ids.clamp(min=0).to(chunk.difference.device)
    ratio = chunk.difference[kept].gather(1, at) - chunk.divergences.shift[kept][:, None]
    log_p = chunk.base_log_probs[kept].gather(1, at)
    return ((log_p if of_base else log_p + ratio).exp() * ratio).cpu()
