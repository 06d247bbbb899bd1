"""Every setting of a run: frozen dataclasses that check themselves.

Units stand in the names. gin fills these from outside (`launch/gin_config.py`); nothing in
`dora_jax/` knows gin.
"""

from __future__ import annotations

import dataclasses

from dora_jax.checks import not_negative, one_of, positive, require
from dora_jax.fingerprints import fingerprint as fingerprint
from dora_jax.fingerprints import to_dict as to_dict
from dora_jax.training_config import LlmConfig as LlmConfig
from dora_jax.training_config import OptimizerConfig as OptimizerConfig
from dora_jax.training_config import PretrainConfig as PretrainConfig
from dora_jax.training_config import SoftLossConfig as SoftLossConfig
from dora_jax.training_config import TrainConfig as TrainConfig

REMAT_POLICIES = ("none", "minimal", "full")
ATTENTIONS = ("auto", "xla", "cudnn")
LLM_STRATEGIES = ("llm", "llm_human", "llm_distill")
STRATEGIES = ("pretrain", "annotate", "distill", *LLM_STRATEGIES)
# How a checkpoint is named, by its kind; native is also a stage of a run, native:RUN/distill.
CHECKPOINTS = {"hf": "hf:org/name or hf:FOLDER", "t5x": "t5x:FOLDER", "native": "native:FOLDER"}
FIRST_LABEL_BATCH = 64  # texts at once, where a measured choice begins
TASK_KINDS = ("classification", "spans", "text")


@dataclasses.dataclass(frozen=True)
class T5Config:
    """One T5 network, in T5X's field names.

    `mlp_activations=("gelu", "linear")` is the gated MLP of v1.1, Flan and mT5; `("relu",)`
    that of v1.0. `dtype` is the type of activations, `param_dtype` that of parameters and their
    gradients; softmax and loss stay in float32. `attention` is the form it is computed in: "xla",
    "cudnn", or the one that suits the device. `scan_unroll` layers are compiled as straight code
    per turn of the layer loop: 1 compiles fastest, the number of layers runs fastest on a CPU;
    results do not change.
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
    param_dtype: str = "float32"
    attention: str = "auto"
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    remat_policy: str = "none"
    scan_unroll: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        positive(
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
        require(
            0.0 <= self.dropout_rate < 1.0,
            f"T5Config.dropout_rate = {self.dropout_rate}; it must lie in [0, 1).",
        )
        for activation in self.mlp_activations:
            one_of("T5Config", "mlp_activations", activation, ("relu", "gelu", "silu", "linear"))
        one_of("T5Config", "dtype", self.dtype, ("float32", "bfloat16"))
        one_of("T5Config", "param_dtype", self.param_dtype, ("float32", "bfloat16"))
        one_of("T5Config", "attention", self.attention, ATTENTIONS)
        one_of("T5Config", "remat_policy", self.remat_policy, REMAT_POLICIES)


@dataclasses.dataclass(frozen=True)
class LabelConfig:
    """The teacher's single pass over the unlabelled text.

    `temperatures` get an exact stored log-normaliser each; the distillation temperature must
    be among them. `top_k = 0` takes the smallest within the probe's tolerance; `batch_size = 0`
    the cheapest batch and `widths`, measured (stages/label_choice.py). Sources are padded to one
    of so many widths, each a program to compile: more pad less. `shard_examples` is what a crash
    can lose at most. `no_repeat_ngram_size` is that of decoding: so many tokens never come twice
    in the same order (0: they may). `drawn_at` keeps entries drawn from the distribution at that
    temperature, for the `sample` estimator, instead of the largest (0). `sampling_temperature`
    has the teacher draw its answers' tokens instead of taking the likeliest (0). Where neither
    is drawn, rows take new texts once `refill_share` of them have ended (0: a batch ends as one).
    `human_targets` labels the human labels' own tokens too, without decoding.
    """

    top_k: int = 64
    temperatures: tuple[float, ...] = (1.0, 2.0)
    batch_size: int = FIRST_LABEL_BATCH
    widths: int = 5
    shard_examples: int = 1024
    no_repeat_ngram_size: int = 0
    drawn_at: float = 0.0
    sampling_temperature: float = 0.0
    refill_share: float = 0.0
    human_targets: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperatures", tuple(float(t) for t in self.temperatures))
        not_negative(self, "top_k", "batch_size", "no_repeat_ngram_size", "drawn_at")
        not_negative(self, "sampling_temperature")
        require(
            not (self.sampling_temperature and self.no_repeat_ngram_size),
            f"LabelConfig.sampling_temperature = {self.sampling_temperature} with "
            f"no_repeat_ngram_size = {self.no_repeat_ngram_size}: only greedy decoding rules "
            "repetitions out. Set one of them to 0.",
        )
        positive(self, "widths", "shard_examples")
        require(
            0.0 <= self.refill_share <= 1.0,
            f"LabelConfig.refill_share = {self.refill_share}; it must lie in [0, 1].",
        )
        require(
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
    no_repeat_ngram_size: int = 0  # as in LabelConfig

    def __post_init__(self) -> None:
        positive(self, "batch_size", "validation_examples", "bootstrap_resamples")
        not_negative(self, "no_repeat_ngram_size")
        require(
            0.0 < self.confidence < 1.0,
            f"EvaluateConfig.confidence = {self.confidence}; it must lie in (0, 1).",
        )


@dataclasses.dataclass(frozen=True)
class OwnTaskConfig:
    """A task of the user's own: files, columns and kind; no `train_file` means there is none.

    Files are CSV, TSV or JSON lines; "" for `validation_file` cuts validation off train, "" for
    `unlabeled_file` leaves the train rows beyond the labels. No `labels` takes the classes of
    the train file. `files_fingerprint` is that of all files' bytes: it makes a run directory
    refuse files that changed under their names.
    """

    train_file: str = ""
    test_file: str = ""
    validation_file: str = ""
    unlabeled_file: str = ""
    source_column: str = "source"
    target_column: str = "target"
    kind: str = "classification"
    labels: tuple[str, ...] = ()
    prompt_prefix: str = ""  # "": the task's name and a colon
    files_fingerprint: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        one_of("OwnTaskConfig", "kind", self.kind, TASK_KINDS)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which rows of which task, at which lengths, in which vocabulary.

    `data_dir` is the folder of the authors' files ("" takes the bundled sample); a task of
    the user's `own` has its files named there instead. `vocabulary` is a SentencePiece model
    file ("" trains one of `vocabulary_pieces` pieces on the task's own text). -1 for a count
    takes every row there is. `token_store` names an already prepared store ("" prepares one
    inside the run directory).
    """

    task: str = "wlp"
    own: OwnTaskConfig = OwnTaskConfig()
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
        positive(self, "source_length", "target_length", "vocabulary_pieces")
        require(
            self.num_labels > 0 or self.num_labels == -1,
            f"DataConfig.num_labels = {self.num_labels}; it must be greater than 0, or -1 for all.",
        )
        one_of("DataConfig", "on_bad_row", self.on_bad_row, ("error", "skip"))
        require(
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
        positive(self, "tensor")
        require(
            self.fsdp > 0 or self.fsdp == -1,
            f"MeshConfig.fsdp = {self.fsdp}; it must be greater than 0, or -1 for all devices.",
        )


@dataclasses.dataclass(frozen=True)
class CostConfig:
    """What a device-hour and a label cost in this run, and where those prices come from.

    -1 looks the price up in the dated price book; a CPU has none there and costs 0 unless
    the user says otherwise. `price_book` is a book of the user's own, which comes first; `spot`
    takes the prices of devices that may be taken away. A run ends at `budget_usd`, labels
    included (-1: no cap).
    """

    price_usd_per_device_hour: float = -1.0
    price_usd_per_label: float = -1.0
    price_book: str = ""
    spot: bool = False
    uncounted_hours: float = -1.0  # boot, image, weight download; -1: stated as not counted
    budget_usd: float = -1.0

    def __post_init__(self) -> None:
        for field in (
            "price_usd_per_device_hour",
            "price_usd_per_label",
            "uncounted_hours",
            "budget_usd",
        ):
            value = getattr(self, field)
            require(
                value >= 0 or value == -1,
                f"CostConfig.{field} = {value}; it must be 0 or more, or -1 for none.",
            )


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A network and where its weights come from.

    `weights`: a checkpoint as `CHECKPOINTS` writes them (docs/checkpoints.md), or "" to pretrain
    inside the run on the task's text. `param_dtype` is put into the network: teacher and student
    may be one network, of which only the teacher is short of memory; "" leaves it as it is.
    """

    network: T5Config = T5Config()
    weights: str = ""
    pretrain: PretrainConfig = PretrainConfig()
    param_dtype: str = ""

    def __post_init__(self) -> None:
        if self.param_dtype:
            network = dataclasses.replace(self.network, param_dtype=self.param_dtype)
            object.__setattr__(self, "network", network)
        require(
            not self.weights or self.weights.partition(":")[0] in CHECKPOINTS,
            f"ModelSource.weights = {self.weights!r}; expected one of "
            f"{', '.join(CHECKPOINTS.values())}, or ''.",
        )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything one run does. `scale` is written into records and read by nothing below launch.

    `shared_dir` is where stages lie that other runs may need too; "" keeps them in the run's own
    directory.
    """

    model_dir: str
    scale: str
    seed: int = 0
    shared_dir: str = dataclasses.field(default="", kw_only=True)
    strategies: tuple[str, ...] = ("annotate", "distill")
    data: DataConfig = DataConfig()
    teacher: ModelSource = ModelSource()
    student: ModelSource = ModelSource()
    teach: TrainConfig = TrainConfig()
    annotate: TrainConfig = TrainConfig()
    distill: TrainConfig = TrainConfig()
    llm: LlmConfig = LlmConfig()
    label: LabelConfig = LabelConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    mesh: MeshConfig = MeshConfig()
    cost: CostConfig = CostConfig()

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategies", tuple(self.strategies))
        for strategy in self.strategies:
            one_of("RunConfig", "strategies", strategy, STRATEGIES)
        on_llm = [strategy for strategy in self.strategies if strategy in LLM_STRATEGIES]
        require(
            not on_llm or bool(self.llm.labels),
            f"LlmConfig.labels is not set, which {', '.join(on_llm)} cannot do without: name the "
            "file that launch/annotate.py wrote.",
        )
        require(
            "llm_distill" not in self.strategies or "distill" in self.strategies,
            f"RunConfig.strategies = {self.strategies}: llm_distill learns from the teacher of "
            'distill; name "distill" beside it.',
        )
        require(
            "distill" not in self.strategies
            or self.distill.soft_loss.temperature in self.label.temperatures,
            f"distill.soft_loss.temperature = {self.distill.soft_loss.temperature} is not among "
            f"label.temperatures = {self.label.temperatures}; add it there, so that its "
            "log-normaliser is stored.",
        )
        soft_loss = self.distill.soft_loss
        wanted = soft_loss.temperature if soft_loss.tail == "sample" else 0.0
        require(
            "distill" not in self.strategies or self.label.drawn_at == wanted,
            f"label.drawn_at = {self.label.drawn_at:g}; distill.soft_loss.tail = "
            f"{soft_loss.tail!r} at temperature {soft_loss.temperature:g} needs {wanted:g} "
            "(entries drawn at the loss's own temperature for `sample`, the largest otherwise).",
        )
        require(
            not self.label.human_targets or self.distill.gold_share > 0.0,
            "label.human_targets = True with distill.gold_share = 0: no update would see these "
            "labels. Set GOLD_SHARE above 0, or LABEL_HUMAN_TARGETS = False.",
        )
        require(
            not soft_loss.paper_compat,
            "distill.soft_loss.paper_compat: a run distils from cached labels, which say nothing "
            "about padding; the exact loss is train.step.make_online_loss_fn's.",
        )

    def llm_trainings(self) -> dict[str, TrainConfig]:
        """How the students of the run's strategies on a language model's labels are trained."""
        of_all = {
            "llm": dataclasses.replace(self.llm.train, gold_share=0.0),
            "llm_human": dataclasses.replace(self.llm.train, gold_share=self.llm.human_share),
            "llm_distill": dataclasses.replace(self.distill, gold_share=self.llm.gold_share),
        }
        return {name: train for name, train in of_all.items() if name in self.strategies}
