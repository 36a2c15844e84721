"""`finetrace audit`: two models in, a report out, and an exit code for a build."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetrace.api.defaults import DECODING, METHODS, TINY_DECODING
from finetrace.api.names import is_bundled
from finetrace.core.decoding import Decoding
from finetrace.core.errors import BadInput
from finetrace.engine.shape import Shape
from finetrace.store.keeping import TYPES, Keeping, parse_layers

if TYPE_CHECKING:
    from finetrace.api.request import Request
    from finetrace.cli.gate import Gate

EXAMPLE = "Example: finetrace audit tinyworld tinyworld/refusal_erosion --out runs/erosion"
PANEL = "How it runs"
GATE = "The gate of a build"
ASKED = "Prompts and answers"
STORE = "Hidden states kept on disk"
SETS = "Calibration sets, for the methods that need them"


def add(app: typer.Typer) -> None:
    app.command("audit", epilog=EXAMPLE)(audit)


def audit(
    base: Annotated[
        str, typer.Argument(help="Base model: a folder, a hub id, or tinyworld.", show_default=False)
    ],
    tuned: Annotated[
        str | None,
        typer.Argument(
            help="Fine-tune: adapter or checkpoint folder, or hub id. Without it: base against itself."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="JSONL, Parquet or text file, or a hub dataset id.", show_default="bundled samples"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report and the results.")] = Path(
        "finetrace-audit"
    ),
    methods: Annotated[str, typer.Option(help="Comma-separated; see `finetrace list methods`.")] = ",".join(
        METHODS
    ),
    null: Annotated[
        list[str] | None,
        typer.Option(
            help="A harmless fine-tune of the same base (three or more give a verdict), or `train`."
        ),
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            help="Exit 3 if this breaks, 4 if it is undecided, e.g. 'refusal_drop>5%'; see `finetrace list rules`.",
            rich_help_panel=GATE,
        ),
    ] = None,
    allow_undecided: Annotated[
        bool, typer.Option(help="Exit 0 where a rule is undecided or not measured.", rich_help_panel=GATE)
    ] = False,
    served: Annotated[
        str | None,
        typer.Option(
            help="A served model (Inspect's name, e.g. vllm/me/tuned): does it answer as the local pair does?",
            rich_help_panel=GATE,
        ),
    ] = None,
    trained_quantization: Annotated[
        str | None,
        typer.Option(
            help="How the base was held when the adapter was trained: none, nf4, int4, int8, fp8, gptq, awq, other.",
            show_default="from its files",
            rich_help_panel=GATE,
        ),
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option(help="JUnit XML of the rules.", show_default="junit.xml in --out", rich_help_panel=GATE),
    ] = None,
    sarif: Annotated[
        Path | None,
        typer.Option(
            help="SARIF of the rules.", show_default="finetrace.sarif in --out", rich_help_panel=GATE
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            help="JSONL or Parquet file, hub data set, or benchmark (`finetrace list benchmarks`); again for more.",
            show_default="bundled probes",
            rich_help_panel=ASKED,
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="System prompt for every conversation.", rich_help_panel=ASKED)
    ] = None,
    arms: Annotated[
        str,
        typer.Option(
            help="Also put the prompts so, comma-separated: default, none (no system prompt), own (the tuned side's "
            "template).",
            rich_help_panel=ASKED,
        ),
    ] = "",
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            help="Cut answers to this many tokens.",
            show_default=f"{DECODING.max_new_tokens}; {TINY_DECODING.max_new_tokens} on the bundled world",
            rich_help_panel=ASKED,
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(help="Answers a prompt; above 1 with a temperature.", rich_help_panel=ASKED)
    ] = Decoding.samples,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token each time.", rich_help_panel=ASKED)
    ] = Decoding.temperature,
    decode_batch: Annotated[
        int | None,
        typer.Option(
            help="Prompts answered at once.",
            show_default=f"{DECODING.batch_size}; {TINY_DECODING.batch_size} on the bundled world",
            rich_help_panel=ASKED,
        ),
    ] = None,
    backend: Annotated[
        str, typer.Option(help="What writes the answers: transformers or vllm.", rich_help_panel=ASKED)
    ] = "transformers",
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="A model that grades answers, MODEL or RUBRIC=MODEL (provider/name or local:FOLDER); two or more agree "
            "or not.",
            rich_help_panel=ASKED,
        ),
    ] = None,
    judge_labels: Annotated[
        Path | None,
        typer.Option(
            help="JSONL answers with a known verdict: rates are corrected for the judges' errors.",
            rich_help_panel=ASKED,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Cut texts to this many tokens.", show_default="no cut")
    ] = None,
    reveal: Annotated[
        bool, typer.Option(help="Show restricted texts, prompts and answers in the report.")
    ] = False,
    dose: Annotated[bool, typer.Option(help="Also read each null scaled to the pair's size.")] = True,
    dry_run: Annotated[bool, typer.Option(help="Say what it would cost, and stop.")] = False,
    dtype: Annotated[
        str, typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel=PANEL)
    ] = "auto",
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=PANEL)
    ] = "auto",
    batch_size: Annotated[int, typer.Option(help="Texts at once.", rich_help_panel=PANEL)] = Shape.batch_size,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="An option of a method, e.g. kl.passages=4.", rich_help_panel=PANEL),
    ] = None,
    safety_set: Annotated[
        Path | None,
        typer.Option(help="JSONL chats: harmful requests, refused.", rich_help_panel=SETS),
    ] = None,
    utility_set: Annotated[
        Path | None,
        typer.Option(help="JSONL chats: ordinary requests, answered.", rich_help_panel=SETS),
    ] = None,
    placebo_set: Annotated[
        Path | None,
        typer.Option(help="JSONL chats of one harmless narrow kind.", rich_help_panel=SETS),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            help="Keep the pair's hidden states in this folder, for methods that read the texts again.",
            show_default="nothing is kept",
            rich_help_panel=STORE,
        ),
    ] = None,
    store_layers: Annotated[
        str,
        typer.Option(
            help="Layers to keep, e.g. 0.5,1.0 (relative) or 12 (a block).",
            show_default="those that the methods read",
            rich_help_panel=STORE,
        ),
    ] = "",
    store_dtype: Annotated[
        str, typer.Option(help=f"{' or '.join(TYPES)}.", rich_help_panel=STORE)
    ] = Keeping.dtype,
    store_nulls: Annotated[
        bool, typer.Option(help="Keep those of each null, too.", rich_help_panel=STORE)
    ] = False,
    seed: Annotated[
        int, typer.Option(help="For the bootstrap and the bundled texts.", rich_help_panel=PANEL)
    ] = 0,
    revision: Annotated[
        str | None, typer.Option(help="Hub revision of the base.", rich_help_panel=PANEL)
    ] = None,
    tuned_revision: Annotated[
        str | None, typer.Option(help="Hub revision of the tuned.", rich_help_panel=PANEL)
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(
            help="eager, sdpa or flash_attention_2.",
            show_default="the architecture's",
            rich_help_panel=PANEL,
        ),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Use this tokenizer.", rich_help_panel=PANEL)] = None,
    chat_template: Annotated[
        Path | None, typer.Option(help="A file with a Jinja chat template.", rich_help_panel=PANEL)
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Faster sums; needs a C++ compiler on a CPU.", rich_help_panel=PANEL),
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option(help="Run code that a checkpoint brings. Off unless you say so.", rich_help_panel=PANEL),
    ] = False,
) -> None:
    """Compare a base model with a fine-tune of it, and write report.html, report.json and model-card.md.

    Exit codes: 0 all rules passed, 3 one broke, 4 one is undecided or was not measured, 2 bad input.
    """
    from finetrace.api.request import Request
    from finetrace.cli.gate import Gate

    usual = TINY_DECODING if is_bundled(base) else DECODING
    if store is None and (store_layers or store_nulls):
        raise BadInput(
            "--store-layers and --store-nulls are about hidden states that are kept: name a folder, --store DIR."
        )
    sets = {"safety": safety_set, "utility": utility_set, "placebo": placebo_set}
    request = Request(
        base=base,
        tuned=tuned,
        data=data,
        out=out,
        methods=tuple(name.strip() for name in methods.split(",") if name.strip()),
        nulls=tuple(null or ()),
        system=system,
        prompts=prompts or None,
        arms=tuple(name.strip() for name in arms.split(",") if name.strip()),
        judges=tuple(judge or ()),
        backend=backend,
        judge_labels=judge_labels,
        served=served,
        trained_quantization=trained_quantization,
        decoding=Decoding(
            max_new_tokens=usual.max_new_tokens if max_new_tokens is None else max_new_tokens,
            temperature=temperature,
            samples=samples,
            seed=seed,
            batch_size=usual.batch_size if decode_batch is None else decode_batch,
        ),
        dtype=dtype,
        device=device,
        revision=revision,
        tuned_revision=tuned_revision,
        attn_implementation=attention,
        tokenizer=tokenizer,
        chat_template=read_template(chat_template),
        trust_remote_code=trust_remote_code,
        seed=seed,
        max_tokens=max_tokens,
        shape=Shape(batch_size=batch_size, compile=compiled),
        reveal=reveal,
        dose=dose,
        settings=tuple(settings or ()),
        calibration={name: path for name, path in sets.items() if path is not None},
        store=store and Keeping(store, parse_layers(store_layers), store_dtype, store_nulls),
    )
    if dry_run:
        from finetrace.cli.cost import show_cost

        show_cost(request, tuple(fail_on or ()))
        return
    gate = Gate(tuple(fail_on or ()), allow_undecided, junit, sarif)
    raise typer.Exit(perform(request, gate))


def read_template(path: Path | None) -> str | None:
    if path is None:
        return None
    if not path.is_file():
        raise BadInput(f"The chat template {path} is not a file.")
    return path.read_text(encoding="utf-8")


def command_line() -> str:
    return shlex.join(["finetrace", *sys.argv[1:]])


def one_thread() -> None:
    """For the bundled models, which are so small that a second thread only waits; OMP_NUM_THREADS still decides."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def perform(request: Request, gate: Gate) -> int:
    """Audits, writes the report, prints the summary; returns the exit code that the rules give."""
    from rich.console import Console

    from finetrace.api.audit import run
    from finetrace.api.names import is_bundled
    from finetrace.api.request import check
    from finetrace.api.rules import exit_code
    from finetrace.cli.progress import Bars
    from finetrace.report import summary, write_report

    chosen = check(request, gate.rules)
    if is_bundled(request.base):
        one_thread()
    console = Console()
    findings = gate.judged(run(request, chosen, Bars(), command=command_line()).findings)
    path = write_report(findings, request.out)
    for part in summary(findings):
        console.print(part)
    for name, file in (*gate.write(findings, request.out), ("Report", path)):
        console.print(f"{name}: {file}", markup=False, highlight=False, soft_wrap=True)
    return exit_code(findings.rules)
