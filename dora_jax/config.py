"""Every setting of a run: frozen dataclasses that check themselves.

Units stand in the names. gin fills these from outside (`launch/gin_config.py`); nothing in
`dora_jax/` knows gin. `fingerprint` turns any of them, or a plain dict, into a short hash
that manifests compare.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

OPTIMIZERS = ("adafactor", "adamw")
SCHEDULES = ("constant", "linear", "cosine", "rsqrt")
TAILS = ("bucket", "renormalise")
REMAT_POLICIES = ("none", "minimal", "full")
STRATEGIES = ("annotate", "distill")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _one_of(owner: str, field: str, value: Any, allowed: tuple[str, ...]) -> None:
    _require(
        value in allowed,
        f"{owner}.{field} = {value!r} is not known; choose one of {', '.join(map(repr, allowed))}.",
    )


def _positive(owner: Any, *fields: str) -> None:
    for field in fields:
        value = getattr(owner, field)
        _require(
            value > 0, f"{type(owner).__name__}.{field} = {value!r}; it must be greater than 0."
        )


def to_dict(config: Any) -> Any:
    """The plain-JSON form of a config: dataclasses become dicts, tuples lists."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_dict(value) for value in config]
    return config


def fingerprint(config: Any) -> str:
    """First 16 hex digits of the SHA-256 of the config's canonical JSON."""
    text = json.dumps(to_dict(config), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class T5Config:
    """One T5 network, in T5X's field names.

    `mlp_activations=("gelu", "linear")` is the gated MLP of v1.1, Flan and mT5; `("relu",)`
    that of v1.0. `dtype` is the type of activations; parameters, softmax and loss stay in
    float32. `scan_unroll` layers are compiled as straight code per turn of the layer loop:
    1 compiles fastest, the number of layers runs fastest on a CPU; results do not change.
    Source: t5x/examples/scalable_t5/network.py; arXiv 1910.10683, 2002.05202.
    """

    vocab_size: int = 32128
    emb_dim: int = 512
    num_heads: int = 6
    num_encoder_layers: int = 8
    num_decoder_layers: int = 8
    head_dim: int = 64
    mlp_dim: int = 1024
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    dropout_rate: float = 0.0
    logits_via_embedding: bool = False
    dtype: str = "float32"
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    remat_policy: str = "none"
    scan_unroll: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        _positive(
            self,
            "vocab_size",
            "emb_dim",
            "num_heads",
            "num_encoder_layers",
            "num_decoder_layers",
            "head_dim",
            "mlp_dim",
            "scan_unroll",
        )
        _require(
            0.0 <= self.dropout_rate < 1.0,
            f"T5Config.dropout_rate = {self.dropout_rate}; it must lie in [0, 1).",
        )
        for activation in self.mlp_activations:
            _one_of("T5Config", "mlp_activations", activation, ("relu", "gelu", "silu", "linear"))
        _one_of("T5Config", "dtype", self.dtype, ("float32", "bfloat16"))
        _one_of("T5Config", "remat_policy", self.remat_policy, REMAT_POLICIES)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule.

    `adafactor` is T5's (factored second moments, step scaled by parameter size, update RMS
    clipped at 1); `learning_rate` is then relative, 1e-3 for fine-tuning T5. `adamw` takes an
    absolute rate, 3e-5 in the authors' script.
    """

    name: str = "adafactor"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    gradient_clip_norm: float = 0.0  # 0: no clipping

    def __post_init__(self) -> None:
        _one_of("OptimizerConfig", "name", self.name, OPTIMIZERS)
        _one_of("OptimizerConfig", "schedule", self.schedule, SCHEDULES)
        _positive(self, "learning_rate")
        _require(self.warmup_steps >= 0, "OptimizerConfig.warmup_steps must not be negative.")


@dataclasses.dataclass(frozen=True)
class SoftLossConfig:
    """How a student learns from soft labels: forward KL at `temperature`, times its square.

    `tail` says what becomes of the teacher's probability outside the kept entries: `bucket`
    compares it with the student's as one more class, `renormalise` ignores it.
    `hard_label_share` mixes in cross-entropy on the teacher's tokens (0: none, as the paper).
    """

    temperature: float = 2.0
    tail: str = "bucket"
    hard_label_share: float = 0.0

    def __post_init__(self) -> None:
        _positive(self, "temperature")
        _one_of("SoftLossConfig", "tail", self.tail, TAILS)
        _require(
            0.0 <= self.hard_label_share <= 1.0,
            f"SoftLossConfig.hard_label_share = {self.hard_label_share}; it must lie in [0, 1].",
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training phase: pretraining, teaching, annotating or distilling.

    `batch_size` counts examples per update, whatever rows they are packed into.
    `pack_source_length` and `pack_target_length` are the row lengths of packed batches; 0
    takes the task's feature lengths. `row_buckets` is how many numbers of rows are compiled:
    1 for short phases, more pad less. `gold_share` is the share of each batch drawn from the
    human-labelled examples when the rest carries soft labels.
    """

    train_steps: int = 1000
    batch_size: int = 32
    optimizer: OptimizerConfig = OptimizerConfig()
    soft_loss: SoftLossConfig = SoftLossConfig()
    gold_share: float = 0.0
    z_loss: float = 0.0
    dropout_rate: float = 0.1
    microbatches: int = 1
    pack_source_length: int = 0
    pack_target_length: int = 0
    row_buckets: int = 3
    eval_every_steps: int = 0  # 0: only at the end
    checkpoint_every_steps: int = 500
    keep_checkpoints: int = 2
    early_stop_evals: int = 0  # stop after so many evaluations without a new best; 0: never
    log_every_steps: int = 10

    def __post_init__(self) -> None:
        _positive(
            self,
            "train_steps",
            "batch_size",
            "microbatches",
            "row_buckets",
            "checkpoint_every_steps",
            "keep_checkpoints",
            "log_every_steps",
        )
        _require(
            0.0 <= self.gold_share < 1.0,
            f"TrainConfig.gold_share = {self.gold_share}; it must lie in [0, 1).",
        )
        _require(
            0.0 <= self.dropout_rate < 1.0,
            f"TrainConfig.dropout_rate = {self.dropout_rate}; it must lie in [0, 1).",
        )


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Denoising on the task's own text, for runs that have no pretrained weights at hand.

    Three tasks. Span corruption as T5's (`noise_density`, `mean_span_length`: arXiv
    1910.10683, section 3.3.4). Copying of random pieces: all there is in the first
    `copying_epochs`, `copying_share` of the examples afterwards. Extraction of the phrases
    between frequent pieces (those that make up `frequent_share` of the text):
    `extraction_share` of the examples. What the shares leave over is span corruption.
    `copying_start` starts from weights that favour copying (`model.t5.copying_start`).
    """

    train: TrainConfig = TrainConfig()
    copying_epochs: int = 0
    copying_share: float = 0.0
    extraction_share: float = 0.0
    frequent_share: float = 0.35
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    copying_start: bool = False

    def __post_init__(self) -> None:
        _require(
            min(self.copying_share, self.extraction_share, self.copying_epochs) >= 0
            and self.copying_share + self.extraction_share <= 1.0,
            f"PretrainConfig.copying_share = {self.copying_share} and extraction_share = "
            f"{self.extraction_share} must not be negative, nor together exceed 1.",
        )
        for name in ("noise_density", "frequent_share"):
            value = getattr(self, name)
            _require(0.0 < value < 1.0, f"PretrainConfig.{name} = {value}; it must lie in (0, 1).")
        _positive(self, "mean_span_length")


@dataclasses.dataclass(frozen=True)
class LabelConfig:
    """The teacher's single pass over the unlabelled text.

    `temperatures` get an exact stored log-normaliser each; the distillation temperature must
    be among them. `shard_examples` is what a crash can lose at most.
    """

    top_k: int = 64
    temperatures: tuple[float, ...] = (1.0, 2.0)
    batch_size: int = 64
    shard_examples: int = 1024

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperatures", tuple(float(t) for t in self.temperatures))
        _positive(self, "top_k", "batch_size", "shard_examples")
        _require(
            bool(self.temperatures) and min(self.temperatures) > 0,
            f"LabelConfig.temperatures = {self.temperatures}; name at least one, all above 0.",
        )


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Decoding a labelled split and scoring it."""

    batch_size: int = 64
    validation_examples: int = 256  # how many are decoded to choose a checkpoint
    bootstrap_resamples: int = 2000
    confidence: float = 0.95

    def __post_init__(self) -> None:
        _positive(self, "batch_size", "validation_examples", "bootstrap_resamples")
        _require(
            0.0 < self.confidence < 1.0,
            f"EvaluateConfig.confidence = {self.confidence}; it must lie in (0, 1).",
        )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which rows of which task, at which lengths, in which vocabulary.

    `data_dir` is the folder of the authors' files ("" takes the bundled sample).
    `vocabulary` is a SentencePiece model file ("" trains one of `vocabulary_pieces` pieces on
    the task's own text). -1 for a count takes every row there is. `token_store` names an
    already prepared store ("" prepares one inside the run directory).
    """

    task: str = "wlp"
    data_dir: str = ""
    source_length: int = 128
    target_length: int = 128
    num_labels: int = 1000
    num_unlabeled: int = -1
    num_validation: int = -1
    num_test: int = -1
    validation_share: float = 0.05
    labels_seed: int = -1  # -1: file order; else the labels are drawn by this seed
    vocabulary: str = ""
    vocabulary_pieces: int = 2000
    extra_ids: int = 100
    on_bad_row: str = "error"
    token_store: str = ""

    def __post_init__(self) -> None:
        _positive(self, "source_length", "target_length", "num_labels", "vocabulary_pieces")
        _one_of("DataConfig", "on_bad_row", self.on_bad_row, ("error", "skip"))
        _require(
            0.0 < self.validation_share < 0.5,
            f"DataConfig.validation_share = {self.validation_share}; it must lie in (0, 0.5).",
        )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices divide the work; what fsdp and tensor leave over splits the batch.

    `fsdp` devices share parameters and optimizer state by rows, `tensor` devices every matrix
    product. -1 for fsdp takes all devices that `tensor` leaves.
    """

    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        _positive(self, "tensor")
        _require(
            self.fsdp > 0 or self.fsdp == -1,
            f"MeshConfig.fsdp = {self.fsdp}; it must be greater than 0, or -1 for all devices.",
        )


@dataclasses.dataclass(frozen=True)
class CostConfig:
    """What a device-hour and a label cost in this run, and where those prices come from.

    -1 looks the price up in the dated price book; a CPU has none there and costs 0 unless
    the user says otherwise.
    """

    price_usd_per_device_hour: float = -1.0
    price_usd_per_label: float = -1.0
    uncounted_hours: float = -1.0  # boot, image, weight download; -1: stated as not counted

    def __post_init__(self) -> None:
        for field in ("price_usd_per_device_hour", "price_usd_per_label", "uncounted_hours"):
            value = getattr(self, field)
            _require(
                value >= 0 or value == -1,
                f"CostConfig.{field} = {value}; it must be 0 or more, or -1 to look it up.",
            )


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A network and where its weights come from.

    `weights`: "hf:org/name", "hf:FOLDER", or "" to pretrain inside the run on the task's text.
    """

    network: T5Config = T5Config()
    weights: str = ""
    pretrain: PretrainConfig = PretrainConfig()

    def __post_init__(self) -> None:
        _require(
            not self.weights or self.weights.startswith("hf:"),
            f"ModelSource.weights = {self.weights!r}; expected 'hf:org/name', 'hf:FOLDER' or ''.",
        )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything one run does. `scale` is written into records and read by nothing below launch."""

    model_dir: str
    scale: str
    seed: int = 0
    strategies: tuple[str, ...] = ("annotate", "distill")
    data: DataConfig = DataConfig()
    teacher: ModelSource = ModelSource()
    student: ModelSource = ModelSource()
    teach: TrainConfig = TrainConfig()
    annotate: TrainConfig = TrainConfig()
    distill: TrainConfig = TrainConfig()
    label: LabelConfig = LabelConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    mesh: MeshConfig = MeshConfig()
    cost: CostConfig = CostConfig()

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategies", tuple(self.strategies))
        for strategy in self.strategies:
            _one_of("RunConfig", "strategies", strategy, STRATEGIES)
        _require(
            "distill" not in self.strategies
            or self.distill.soft_loss.temperature in self.label.temperatures,
            f"distill.soft_loss.temperature = {self.distill.soft_loss.temperature} is not among "
            f"label.temperatures = {self.label.temperatures}; add it there, so that its "
            "log-normaliser is stored.",
        )
