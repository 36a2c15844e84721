"""pca on hidden states made by hand: what was planted is found, in whatever shards, and no text judges its own directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from finetrace.core.errors import BadInput
from finetrace.core.page import Passage, Table, Warning
from finetrace.data import ROLES
from finetrace.engine import Step, Subject
from finetrace.engine.covariance import principal_angles
from finetrace.methods.pca import Config, steer
from finetrace.methods.pca.describe import describe
from finetrace.methods.pca.observe import PCA, observer
from finetrace.methods.pca.places import look
from finetrace.methods.pca.ranking import top_tokens
from finetrace.methods.pca.result import Result
from finetrace.methods.pca.run import Directions, run
from finetrace.models import Vocabulary

D, VOCAB, LENGTH = 16, 40, 12
_TEMPLATE, _TEXT = ROLES.index("template"), ROLES.index("text")
ONE = Config(layers=(1.0,), components=3, read=3, tokens=4)


def head(seed: int = 0) -> Tensor:
    weight = torch.randn(VOCAB, D, generator=torch.Generator().manual_seed(seed))
    return weight / weight.norm(dim=-1, keepdim=True)


def subject(slices: Sequence[str] = ("text",)) -> Subject:
    words = Vocabulary(
        ids=np.arange(100, 100 + VOCAB, dtype=np.int64),
        texts=tuple(f" t{i}" for i in range(VOCAB)),
        special=np.arange(VOCAB) == 0,
        dead=np.zeros(VOCAB, dtype=bool),
    )
    return Subject(
        slices=tuple(slices),
        n_layers=3,
        d_model=D,
        vocab_size=VOCAB,
        seed=0,
        spell=lambda ids: tuple(f" t{i}" for i in ids),
        words=lambda: words,
        lens=lambda vectors, direction=True: (vectors @ head(0).T, vectors @ head(1).T),
    )


def noise(n: int, seed: int, length: int = LENGTH) -> Tensor:
    return torch.randn(n, length, D, generator=torch.Generator().manual_seed(seed))


def step(base: Tensor, change: Tensor, first: int = 0, **other: Any) -> Step:
    n, length, _ = base.shape
    position = torch.arange(length).expand(n, length)
    given: dict[str, Any] = {
        "slice": torch.zeros(n, dtype=torch.long),
        "role": torch.full((n, length), _TEXT),
    }
    return Step(
        row=torch.arange(first, first + n),
        # Neighbours go to different halves.
        key=np.arange(first, first + n, dtype=np.uint64),
        ids=torch.arange(length).expand(n, length) + first,
        keep=position < length - 1,
        position=position,
        next_id=torch.ones(n, length, dtype=torch.long),
        hidden=lambda layer: (base, base + change),
        **(given | other),
    )


def steps(change: Any, batches: int = 10, n: int = 8, **other: Any) -> list[Step]:
    """change(base [text, pos, d], seed) is added to random states."""
    made = []
    for i in range(batches):
        base = noise(n, i)
        made.append(step(base, change(base, 1000 + i), first=n * i, **other))
    return made


def seen(given: Sequence[Step], config: Config = ONE, known: Subject | None = None) -> PCA:
    made = observer(config, known or subject())
    for one in given:
        made.see(one)
    return made


@dataclass
class Texts:
    """As much of a desk as `run` touches: the same steps again."""

    given: Sequence[Step]
    subject: Subject = field(default_factory=subject)
    corpus: None = None
    seed: int = 0

    def steps(self, layers: Sequence[int]) -> Iterator[Step]:
        return iter(self.given)

    def advance(self, done: int, total: int) -> None:
        return None


def found(given: Sequence[Step], config: Config = ONE, known: Subject | None = None) -> Result:
    known = known or subject()
    desk: Any = Texts(given, known)
    return run(config, desk, seen(given, config, known).result())


def planted(base: Tensor, seed: int) -> Tensor:
    """A constant along token 17, a change of varied size along token 23, and a little noise."""
    made = torch.Generator().manual_seed(seed)
    along = torch.randn(*base.shape[:2], 1, generator=made)
    return 2.0 * head()[17] + along * head()[23] + 0.05 * noise(len(base), seed + 1)


def test_the_mean_and_a_component_are_found_with_their_words():
    given = steps(planted)
    result = found(given)
    layer = result.layers[0]
    mean, first = (torch.from_numpy(row) for row in layer.directions[:2])
    assert float(mean @ head()[17]) > 0.99
    assert abs(float(first @ head()[23])) > 0.99
    words = layer.words.data
    best = {
        (int(words["direction"][i]), int(words["end"][i])): words["token"][i]
        for i in reversed(range(len(layer.words)))
    }
    assert best[0, 1] == " t17"
    assert " t23" in (best[1, 1], best[1, -1])
    assert {117, 123} <= set(top_tokens(result, "text", 3))
    assert layer.square is not None
    assert float(layer.variance[:2].sum()) == pytest.approx(layer.square, rel=0.02)
    assert (layer.stability[:2] > 0.99).all()
    assert layer.overlap[0] > 0.99
    concentration, share = result.numbers["concentration"], result.numbers["mean_share"]
    assert concentration.value is not None
    assert 0.98 < concentration.value < 1
    assert share.value == pytest.approx(float(layer.variance[0]) / layer.square, rel=0.02)
    assert concentration.low is not None
    assert concentration.low <= concentration.value
    assert result.slices["text"]["mean_share"].value == share.value


def test_equals_a_dense_decomposition_in_whatever_shards():
    """With a mean that is large beside what varies."""
    given = steps(lambda base, seed: planted(base, seed) + 40.0)
    rows = torch.cat([(one.hidden(2)[1] - one.hidden(2)[0])[:, 1:-1].reshape(-1, D) for one in given])
    values, vectors = np.linalg.eigh(np.cov(rows.double().numpy().T, bias=True))
    shards = [seen(given[:3]), seen(given[3:4]), seen(given[4:])]
    total = observer(ONE, subject())
    for shard in shards:
        total.merge(shard)
    for result in (seen(given).result(), total.result()):
        layer = result.layers[0]
        assert layer.variance[1:] == pytest.approx(values[::-1][:3], rel=1e-5)
        mine = torch.from_numpy(layer.directions[1:])
        exact = torch.from_numpy(vectors.T[::-1][:3].copy())
        assert float(principal_angles(mine, exact).max()) < 1e-4
        assert layer.variance[0] == pytest.approx(float(rows.double().mean(0).square().sum()), rel=1e-7)
    assert total.state().keys() == seen(given).state().keys()


def test_states_and_halves_are_those_of_the_dense_rows():
    given = steps(lambda base, seed: planted(base, seed) + 0.5 * base)
    layer = found(given).layers[0]
    base, tuned = (
        torch.cat([one.hidden(2)[side][:, 1:-1].reshape(-1, D) for one in given]).double().numpy()
        for side in (0, 1)
    )
    matrices = [np.cov(rows.T, bias=True) for rows in (tuned - base, base, tuned)]
    assert [layer.base_square, layer.tuned_square] == pytest.approx(
        [np.trace(matrix) for matrix in matrices[1:]], rel=1e-5
    )
    assert layer.participation == pytest.approx(
        [np.trace(matrix) ** 2 / np.square(matrix).sum() for matrix in matrices], rel=1e-4
    )
    along = np.einsum("ki,ij,kj->k", layer.directions, matrices[1], layer.directions)
    assert layer.base_variance == pytest.approx(along, rel=1e-4)
    even = np.repeat(np.arange(80) % 2 == 0, LENGTH - 2)
    tops = [np.linalg.eigh(np.cov((tuned - base)[half].T))[1][:, ::-1] for half in (even, ~even)]
    for k in (1, 2, 3):
        angles = subspace_angles(tops[0][:, :k], tops[1][:, :k])
        assert layer.overlap[k - 1] == pytest.approx(np.square(np.cos(angles)).mean(), rel=1e-4)
    moved = head(1).numpy()[1:] @ layer.directions[0]
    words = layer.words.data
    assert int(words["other_rank"][0]) == 1 + int((moved > moved[int(words["token_id"][0]) - 101]).sum())
    assert len(set(words["other_rank"])) > 1


def test_noise_is_not_flattered_by_its_own_directions():
    """What varies alike in all directions has just its share in a few of them, and no mean."""
    few = steps(lambda base, seed: noise(len(base), seed), batches=1, n=4)
    result = found(few)
    fitted = result.layers[0].variance.sum() / result.layers[0].square
    honest = result.numbers["concentration"]
    assert honest.value is not None
    assert fitted > 1.4 * 4 / D, "on its own texts, more than the share of four directions of sixteen"
    assert honest.value == pytest.approx(4 / D, abs=0.08)
    mean = result.numbers["mean_share"]
    assert mean.low is not None
    assert mean.high is not None
    assert mean.low < 0.02
    assert any(
        "other directions" in block.text for block in describe(result).blocks if isinstance(block, Warning)
    )


def test_the_observer_alone_gives_what_the_second_reading_gives():
    given = steps(planted)
    alone, read = seen(given).result(), found(given)
    for key in ("component_variance", "concentration", "mean_share"):
        assert alone.numbers[key].value == pytest.approx(read.numbers[key].value, rel=1e-4)
        assert alone.numbers[key].n == read.numbers[key].n
    # Along one direction, the base's variance is that of all texts here, and of each half there.
    assert alone.numbers["top_component_ratio"].value == pytest.approx(
        read.numbers["top_component_ratio"].value, rel=0.1
    )


def test_first_tokens_and_the_template_are_apart():
    def sinks(base: Tensor, seed: int) -> Tensor:
        change = planted(base, seed)
        change[:, 0] += 1e4
        change[:, 3] -= 1e3
        return change

    role = torch.full((8, LENGTH), _TEXT)
    role[:, 3] = role[:, 0] = _TEMPLATE
    result, plain = found(steps(sinks, role=role)), found(steps(planted))
    assert abs(float(result.layers[0].directions[0] @ plain.layers[0].directions[0])) > 0.999
    apart = result.apart.data
    assert list(apart["place"]) == ["first", "template", "rest"]
    assert list(apart["tokens"]) == [80, 80, 80 * (LENGTH - 3)]
    assert float(apart["change"][0]) > 1e4
    assert float(apart["change"][2]) < 5
    table = next(b for b in describe(result).blocks if isinstance(b, Table) and b.key == "apart")
    told = dict(zip(table.columns, table.rows[0], strict=True))
    assert (told["first_counted"], told["rest_counted"]) == (80, 80 * (LENGTH - 3))
    assert float(str(told["template_change"])) > 1e3 > float(str(told["rest_change"]))


def test_normalised_changes_are_of_the_bases_norm():
    """A few tokens with huge states decide what is not normalised."""

    def proportional(base: Tensor, seed: int) -> Tensor:
        base[:, 5] *= 1000
        norm = base.norm(dim=-1, keepdim=True)
        direction = torch.where((torch.arange(LENGTH) == 5)[None, :, None], head()[9], head()[17])
        return 0.1 * norm * direction

    by_size, fair = (
        found(steps(proportional), Config(layers=(1.0,), components=3, read=2, normalise=normalise))
        for normalise in (False, True)
    )
    assert float(by_size.layers[0].directions[0] @ head()[9].numpy()) > 0.99
    assert float(fair.layers[0].directions[0] @ head()[17].numpy()) > 0.9
    assert fair.layers[0].square == pytest.approx(0.01, rel=1e-4)
    mean = float(np.square(fair.layers[0].base_mean).sum())
    assert fair.layers[0].base_square == pytest.approx(1 - mean, rel=1e-4), (
        "the base's states are of length 1 too"
    )
    assert fair.normalised


def test_what_is_not_finite_is_left_out_and_counted():
    def broken(base: Tensor, seed: int) -> Tensor:
        change = planted(base, seed)
        change[0, 4, 3] = torch.inf
        change[1, 5, 0] = torch.nan
        return change

    result = found(steps(broken))
    assert result.unscored == {"text": 20}
    assert result.numbers["concentration"].n == 80 * (LENGTH - 2) - 20
    assert any("float32" in block.text for block in describe(result).blocks if isinstance(block, Warning))


def test_fewer_tokens_than_dimensions_are_warned_of():
    small = found([step(noise(2, 0, 5), 0.1 * noise(2, 7, 5))], Config(layers=(1.0,), components=20, read=2))
    assert small.layers[0].rank == 5
    assert len(small.layers[0].directions) == 6
    told = [block.text for block in describe(small).blocks if isinstance(block, Warning)]
    assert any("Fewer tokens than dimensions: 6 in 16" in text for text in told)


def test_one_text_gives_no_figures():
    result = found(steps(planted, batches=1, n=1))
    assert all(estimate.value is None for estimate in result.numbers.values())
    assert "Too few tokens" in describe(result).summary


def test_passages_are_the_texts_at_the_ends():
    def spiked(base: Tensor, seed: int) -> Tensor:
        change = planted(base, seed)
        if seed == 1004:
            change[2, 7] += 30 * head()[23]
            change[3, 6] -= 25 * head()[23]
        return change

    result = found(steps(spiked), Config(layers=(1.0,), components=3, read=2, passages=1))
    ends = {p.row: p for p in result.passages if p.direction == 1}
    assert set(ends) == {34, 35}
    assert ends[34].end == -ends[35].end
    values = [0.0 if v is None else v for v in ends[34].values]
    assert int(np.abs(values).argmax()) == 7
    assert ends[34].value == pytest.approx(values[7])
    assert ends[34].values[0] is None
    assert len(ends[34].tokens) == LENGTH
    assert {p.direction for p in result.passages} == {0, 1}
    assert len([block for block in describe(result).blocks if isinstance(block, Passage)]) == 4
    assert not found(steps(spiked), Config(layers=(1.0,), components=3, read=2, passages=0)).passages


def test_what_is_added_is_so_many_times_the_changes_own_size(monkeypatch: pytest.MonkeyPatch):
    config = Config(layers=(1.0,), components=3, read=3, tokens=4, steer=2, strength=3.0)
    layer, pushed = found(steps(planted), config).layers[0], {}

    def record(desk: Any, side: str, at: int, push: Tensor, begun: Sequence[Sequence[int]]) -> list[str]:
        pushed.setdefault(side, []).append(push.double().numpy())
        return ["" for _ in begun]

    monkeypatch.setattr(steer, "_texts", record)
    text = SimpleNamespace(ids=np.arange(20), role=np.full(20, _TEXT))
    corpus = SimpleNamespace(
        slices=("text",), slice_of=np.zeros(1, int), keys=np.zeros(1, np.uint64), tokens=[text]
    )
    desk: Any = SimpleNamespace(corpus=corpus, subject=subject(), side="tuned")
    rows = steer.steered(config, desk, layer)
    size = np.sqrt(layer.variance[:2])[:, None] * layer.directions[:2]
    wanted = [0 * size[0], 3 * size[0], -3 * size[0], 3 * size[1], -3 * size[1]]
    assert pushed.keys() == {"base", "tuned"}
    assert all(np.array(made) == pytest.approx(np.array(wanted), abs=1e-5) for made in pushed.values())
    assert list(rows.data["times"]) == [0, 3, -3, 3, -3] * 2


def test_values_along_a_direction_are_in_its_own_unit():
    """Also where the mean change lies along a component: what is constant is no part of a component's values."""
    given = steps(lambda base, seed: planted(base, seed) + 3.0 * head()[23])
    layer = found(given).layers[0]
    along = Directions(layer, 3)
    values = torch.cat([along.along(one, look(one, 2, False))[:, 1:-1].reshape(-1, 3) for one in given])
    assert values.mean(0).tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-3)
    assert values[:, 1:].std(0, correction=0).tolist() == pytest.approx([1.0, 1.0], rel=1e-3)
    assert bool(along.along(given[0], look(given[0], 2, False))[:, 0].isnan().all())


def test_slices_have_their_own_figures_and_means():
    def apart(base: Tensor, seed: int) -> Tensor:
        change = planted(base, seed)
        change[::2] *= 0.1
        return change

    slices = torch.tensor([0, 1] * 4)
    keys = [np.arange(8 * i, 8 * i + 8, dtype=np.uint64) // np.uint64(2) for i in range(10)]
    given = [
        Step(**{**one.__dict__, "slice": slices, "key": key * np.uint64(2) + np.uint64(i % 2)})
        for i, (one, key) in enumerate(zip(steps(apart), keys, strict=True))
    ]
    result = found(given, ONE, subject(("quiet", "loud")))
    quiet, loud = (result.slices[name]["component_variance"] for name in ("quiet", "loud"))
    assert quiet.value is not None
    assert loud.value is not None
    assert loud.value > 50 * quiet.value
    assert quiet.n + loud.n == result.numbers["component_variance"].n
    rows = result.layers[0].by_slice.data
    assert [rows["token"][list(rows["slice"]).index(name)] for name in ("quiet", "loud")] == [" t17", " t17"]


def test_the_nulls_stand_beside_the_pair():
    pair = found(steps(planted))
    other = found(steps(lambda base, seed: 2.0 * head()[5] + 0.3 * noise(len(base), seed)))
    page = describe(pair, [other, pair])
    tables = {block.key: block for block in page.blocks if isinstance(block, Table)}
    rows = tables["directions_0"].rows
    at = tables["directions_0"].columns.index("in_nulls")
    assert all(float(str(row[at])) > 0.999 for row in rows), "the pair is one of its own nulls"
    alone = {block.key: block for block in describe(pair, [other]).blocks if isinstance(block, Table)}
    assert float(str(alone["directions_0"].rows[0][at])) < 0.6
    words = alone["tokens_0"]
    token, logit, most = (words.columns.index(name) for name in ("token", "logit", "nulls"))
    first = words.rows[0]
    assert first[token] == " t17"
    assert float(str(first[logit])) > float(str(first[most]))
    assert len(tables["null_directions_0"].rows) == 6
    assert "Without nulls" not in page.summary
    assert top_tokens(pair, "text", 2, [other])[0] == 117
    rivals = found(steps(lambda base, seed: 3.0 * head()[17] + 0.3 * noise(len(base), seed)))
    assert top_tokens(pair, "text", 1, [rivals]) == (123,), "what a null moves further is not the pair's"


@pytest.mark.parametrize(
    "wrong", [{"layers": ()}, {"layers": (1.5,)}, {"components": 0}, {"read": 10}, {"passages": -1}]
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]):
    with pytest.raises(BadInput, match="pca"):
        Config(**wrong)
