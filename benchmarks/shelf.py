"""`python -m benchmarks.shelf [--runs 5000]`: a listing through the index against reading every manifest; one line of JSON.

CPU seconds of this process on a shelf of made-up runs with manifests and results as a `kl` audit writes them. A file cache
that is cold costs more, everywhere alike.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetrace.core import shelf_index

_METHODS = ("kl", "diff_mining", "activation_difference_lens", "token_depth", "weight_spectrum")
_KEYS, _SLICES = ("kl_mean", "reverse_kl_mean", "js_mean", "delta_nll_mean"), ("text", "chat", "restricted")


def fill(root: Path, count: int) -> None:
    """Runs in the real layout: 7 bases, 10 variants an organism, 5 methods each. Older than the index is careful about."""
    one = {
        "value": 0.0123456789,
        "unit": "nats/token",
        "n": 15089,
        "clusters": 400,
        "low": 0.0113,
        "high": 0.0135,
    }
    numbers = dict.fromkeys(_KEYS, one)
    # A whole result has passages too, which a listing must step over: 70 kB in all.
    body = json.dumps(
        {"numbers": numbers, "slices": dict.fromkeys(_SLICES, numbers), "passages": ["w" * 60] * 1000},
        indent=1,
    )
    digest = hashlib.sha256(body.encode()).hexdigest()
    for number in range(count):
        turn, method = divmod(number, len(_METHODS))
        place = (f"org/base_{turn % 7}", f"organism_{turn // 10}", f"mix1-0p{turn % 10}", _METHODS[method])
        key = hashlib.sha256(repr(place).encode()).hexdigest()[:20]
        address = dict(zip(shelf_index.PLACE, (*place, key), strict=True))
        folder = root.joinpath(place[0].replace("/", "--"), *place[1:], key)
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(body)
        (folder / "arrays.safetensors").write_bytes(b"")
        manifest = {
            "method": place[3],
            "version": 1,
            "contrast": "pair",
            "created": "2026-11-20T10:00:00+00:00",
        }
        manifest |= {"command": "finetrace run " + "x" * 80, "versions": dict.fromkeys("abcdefgh", "1.2.3")}
        manifest |= {"protocol": dict.fromkeys((f"setting_{i}" for i in range(18)), "f" * 20)}
        manifest |= {"address": address, "files": {"result.json": digest, "arrays.safetensors": "0" * 64}}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def scan(root: Path) -> list[Any]:
    """Every manifest and every result, read anew: what a listing without an index does."""
    return [
        (json.loads(path.read_text()), json.loads((path.parent / "result.json").read_text())["numbers"])
        for path in sorted(root.glob("*/*/*/*/*/manifest.json"))
    ]


def seconds(work: Callable[[], object], rounds: int = 1) -> float:
    taken = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return round(statistics.median(taken), 3)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shelf")
    parser.add_argument("--runs", type=int, default=5000)
    count = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        fill(root, count)
        time.sleep(3)  # younger files are never kept in the index

        def listed() -> object:
            return [entry.numbers for entry in shelf_index.entries(root, lambda entry: True)]

        found = {
            "runs": count,
            "scan": seconds(lambda: scan(root), 3),
            "cold": seconds(listed),
            "warm": seconds(listed, 5),
        }
        found |= {"index_megabytes": round((root / shelf_index.INDEX).stat().st_size / 1e6, 1)}
    print(json.dumps(found | {"scan_over_warm": round(found["scan"] / found["warm"], 1)}))


if __name__ == "__main__":
    main()
