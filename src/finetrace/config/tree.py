"""What a run is configured by: one tree of frozen dataclasses, filled from the groups of YAML files and what was typed.

Field names are those of the files, which are those that the field's published configurations use, so that a user's own
files load as they are. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from finetrace.store.keeping import TYPES

__all__ = [
    "AUTO", "MODES", "Agent", "DataSet", "DeviceMap", "Diffing", "Evaluation", "Infrastructure", "ModelEntry", "OrganismEntry",
    "Pipeline", "Preprocessing", "RayCluster", "RunConfig", "Slurm", "Storage", "TrainingData", "Variant",
]  # fmt: skip

AUTO = "auto"
MODES = ("full", "preprocessing", "diffing", "evaluation", "no_evaluation")
_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class TrainingData:
    """The data that an organism was trained on. id: on the hub. messages_column: where is_chat, else text_column."""

    id: str | None = None
    splits: tuple[str, ...] = ("train",)
    is_chat: bool = False
    text_column: str | None = None
    messages_column: str | None = None
    subset: str | None = None


@dataclass(frozen=True)
class Variant:
    """One training of an organism on one base: an adapter (`org/repo`, `org/repo/subfolder`, a folder, a bundled name) or a
    checkpoint; neither for the base itself. revision: a hub commit or branch."""

    adapter_id: str | None = None
    model_id: str | None = None
    revision: str | None = None
    subfolder: str | None = None
    tokenizer_id: str | None = None
    chat_template: str | None = None

    @property
    def source(self) -> str | None:
        """As a pair is given it; None: the base itself."""
        found = self.adapter_id or self.model_id
        return f"{found}/{self.subfolder}" if found and self.subfolder else found


@dataclass(frozen=True)
class OrganismEntry:
    """A fine-tune whose change is known. description_long: the truth, in words. finetuned_models: model -> variant ->
    where it is. control: it is built to change nothing, and must come out so."""

    name: str
    type: str = "General"
    description: str | None = None
    description_long: str = ""
    dataset: TrainingData | None = None
    finetuned_models: Mapping[str, Mapping[str, Variant]] = field(default_factory=lambda: _NONE)
    paper: str | None = None
    control: bool = False
    preprocessing_overrides: Mapping[str, Any] = field(default_factory=lambda: _NONE)
    agent_interaction_system_prompt: str | None = None


@dataclass(frozen=True)
class ModelEntry:
    """A base model. dtype: what it runs in; auto as in an audit (float32 on a CPU and where both sides fit).
    checkpoint_dtype: what its file holds. has_enable_thinking: its template can switch thinking on and off; thinking: on.
    disable_compile: never compiled, whatever is asked. ignore_first_n_tokens_in_training: positions that dictionaries leave
    out, as attention sinks."""

    name: str
    model_id: str = ""
    revision: str | None = None
    subfolder: str | None = None
    tokenizer_id: str | None = None
    chat_template: str | None = None
    dtype: str = AUTO
    checkpoint_dtype: str | None = None
    attn_implementation: str | None = None
    end_of_turn_token: str | None = None
    has_enable_thinking: bool = False
    thinking: bool = False
    disable_compile: bool = False
    trust_remote_code: bool = False
    quantization: str | None = None
    ignore_first_n_tokens_in_training: int = 0


@dataclass(frozen=True)
class DataSet:
    """The texts that are read. id: a file, a hub data set, `organism` for the data that the organism was trained on, or
    None for those of an audit (the bundled samples; the tiny world's own on its base). max_samples: rows of each split,
    None for all; slice: the name that they get where rows name none. context_len: texts are cut to so many tokens."""

    name: str = "bundled"
    id: str | None = None
    revision: str | None = None
    subset: str | None = None
    split: str | None = None
    text_column: str | None = None
    messages_column: str | None = None
    slice: str | None = None
    max_samples: int | None = None
    context_len: int | None = None


@dataclass(frozen=True)
class Storage:
    """base_dir: where results land (`<base_dir>/runs` is the shelf). A folder of yours; the default is beside you."""

    base_dir: str = "finetrace-runs"


@dataclass(frozen=True)
class DeviceMap:
    """Where the two sides are: a device ("cuda:1", "cpu"), or "auto" to lay a model over all devices; None as `device`."""

    base: str | None = None
    finetuned: str | None = None


@dataclass(frozen=True)
class RayCluster:
    """address: None starts Ray here, "auto" or "host:port" or "ray://host:port" joins one. workers: None is one a GPU, else
    one a CPU core. cpus, gpus: of each worker. retries: how often a lost worker's shard is done again elsewhere."""

    address: str | None = None
    workers: int | None = None
    cpus: float = 1
    gpus: float | None = None
    retries: int = 3


@dataclass(frozen=True)
class Slurm:
    """What a job asks SLURM for. time: minutes. Empty values are left to the cluster's defaults."""

    partition: str | None = None
    account: str | None = None
    nodes: int = 1
    gpus_per_node: int = 1
    cpus_per_task: int = 8
    mem_gb: int | None = None
    time: int = 240
    setup: tuple[str, ...] = ()


@dataclass(frozen=True)
class Infrastructure:
    """kind: local, ray or slurm."""

    name: str = "local"
    kind: str = "local"
    storage: Storage = Storage()
    device: str = AUTO
    device_map: DeviceMap = DeviceMap()
    ray: RayCluster = RayCluster()
    slurm: Slurm = Slurm()


@dataclass(frozen=True)
class Agent:
    """The investigator. model: Inspect's name (provider/name); None is INSPECT_EVAL_MODEL. grader: who grades it, the same
    if None. runs: independent investigations."""

    enabled: bool = False
    model: str | None = None
    grader: str | None = None
    runs: int = 1


@dataclass(frozen=True)
class Evaluation:
    agent: Agent = Agent()


@dataclass(frozen=True)
class Diffing:
    """methods: name -> its options as typed (checked against the method's own dataclass). batch_size: texts at once.
    in_memory: nothing but results is written while a run goes on; false keeps what is finished on disk, so that a killed run
    goes on where it was (the default). results_base_dir: None is infrastructure.storage.base_dir."""

    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: _NONE)
    batch_size: int = 16
    in_memory: bool = False
    results_base_dir: str | None = None
    evaluation: Evaluation = Evaluation()


@dataclass(frozen=True)
class Pipeline:
    mode: str = "full"


@dataclass(frozen=True)
class Preprocessing:
    """What the texts are cut to, and whether hidden states are kept on disk. layers: of those that are kept, relative or
    whole; none are those that the methods read. store: they are kept, in store_dir (`activations` beside the shelf, if None),
    in store_dtype. store_nulls: those of each null, too."""

    layers: tuple[float, ...] = ()
    max_samples_per_dataset: int | None = None
    context_len: int | None = None
    store: bool = False
    store_dir: str | None = None
    store_dtype: str = TYPES[0]
    store_nulls: bool = False


@dataclass(frozen=True)
class RunConfig:
    """One run, composed and checked. model: the organism's base that was chosen (for `model=auto`, its first).

    variant: that of organism.finetuned_models[model.name][organism_variant]; the base itself for a control without one.
    nulls: sources, or ("train",). prompts, judges, rules: as `--prompts`, `--judge` and `--fail-on` of an audit. judge_price: of
    a million tokens read and written by judges and agents, in your currency; () says nothing of money. notes: what was
    accepted though it changes nothing here, to be told before the run.
    """

    organism: OrganismEntry
    model: ModelEntry
    variant: Variant
    organism_variant: str = "default"
    diffing: Diffing = Diffing()
    data: DataSet = DataSet()
    infrastructure: Infrastructure = Infrastructure()
    pipeline: Pipeline = Pipeline()
    preprocessing: Preprocessing = Preprocessing()
    seed: int = 0
    dose: bool = True
    system: str | None = None
    nulls: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    judge_price: tuple[float, ...] = ()
    rules: tuple[str, ...] = ()
    reveal: bool = False
    compile: bool = False
    debug: bool = False
    notes: tuple[str, ...] = ()
