"""Settings of training: the optimizer, the losses, a phase of training, pretraining.

Part of `dora_jax.config`, from which they are imported.
"""

from __future__ import annotations

import dataclasses

from dora_jax.checks import one_of, positive, require

OPTIMIZERS = ("adafactor", "adamw")
SCHEDULES = ("constant", "linear", "cosine", "rsqrt")
TAILS = ("bucket", "renormalise", "sample")
DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon", "total_variation")
_REVERSE_KL_WITHOUT = {
    "renormalise": "the teacher then gives 0 to tokens the student may say, and q log(q / 0) is "
    "infinite.",
    "sample": "its terms q / p log(q / p) have no bounded variance where the teacher hardly "
    "speaks.",
}


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
        one_of("OptimizerConfig", "name", self.name, OPTIMIZERS)
        one_of("OptimizerConfig", "schedule", self.schedule, SCHEDULES)
        positive(self, "learning_rate")
        require(self.warmup_steps >= 0, "OptimizerConfig.warmup_steps must not be negative.")


@dataclasses.dataclass(frozen=True)
class SoftLossConfig:
    """How a student learns from soft labels: a divergence at `temperature`, times its square.

    `tail` says how the teacher's whole distribution is estimated from the kept entries:
    `bucket` makes what lies outside one more class; `renormalise` takes it for 0; `sample` has
    entries drawn from the distribution, and their mean is unbiased. `hard_label_share` mixes in
    cross-entropy on the teacher's tokens (0: none, as the paper; 1: those tokens alone, no
    probabilities: sequence-level distillation). `drop_unended` leaves out texts whose label the
    teacher did not end within the target length: a small teacher goes round in circles there
    (False: all are learned, as the paper). `paper_compat` counts padding positions as the
    authors' script does; it needs the teacher at hand (docs/distillation.md).
    """

    temperature: float = 2.0
    tail: str = "bucket"
    divergence: str = "forward_kl"
    hard_label_share: float = 0.0
    drop_unended: bool = False
    paper_compat: bool = False

    def __post_init__(self) -> None:
        positive(self, "temperature")
        one_of("SoftLossConfig", "tail", self.tail, TAILS)
        one_of("SoftLossConfig", "divergence", self.divergence, DIVERGENCES)
        require(
            self.divergence != "reverse_kl" or self.tail == "bucket",
            f'SoftLossConfig: divergence = "reverse_kl" with tail = {self.tail!r} is undefined: '
            + _REVERSE_KL_WITHOUT.get(self.tail, "")
            + ' Set tail = "bucket", or take another divergence.',
        )
        require(
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
    human-labelled examples when the rest carries soft labels. `vocabulary_block` logits a
    position are made at a time, which saves memory and costs the head's product once more; 0
    makes all of them at once.
    """

    train_steps: int = 1000
    batch_size: int = 32
    optimizer: OptimizerConfig = OptimizerConfig()
    soft_loss: SoftLossConfig = SoftLossConfig()
    gold_share: float = 0.0
    z_loss: float = 0.0
    dropout_rate: float = 0.1
    microbatches: int = 1
    vocabulary_block: int = 0
    pack_source_length: int = 0
    pack_target_length: int = 0
    row_buckets: int = 3
    eval_every_steps: int = 0  # 0: only at the end
    checkpoint_every_steps: int = 500
    keep_checkpoints: int = 2
    early_stop_evals: int = 0  # stop after so many evaluations without a new best; 0: never
    log_every_steps: int = 10

    def __post_init__(self) -> None:
        positive(
            self,
            "train_steps",
            "batch_size",
            "microbatches",
            "row_buckets",
            "checkpoint_every_steps",
            "keep_checkpoints",
            "log_every_steps",
        )
        require(
            self.vocabulary_block >= 0,
            f"TrainConfig.vocabulary_block = {self.vocabulary_block}; it must be 0 or more.",
        )
        require(
            0.0 <= self.gold_share < 1.0,
            f"TrainConfig.gold_share = {self.gold_share}; it must lie in [0, 1).",
        )
        require(
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
        require(
            min(self.copying_share, self.extraction_share, self.copying_epochs) >= 0
            and self.copying_share + self.extraction_share <= 1.0,
            f"PretrainConfig.copying_share = {self.copying_share} and extraction_share = "
            f"{self.extraction_share} must not be negative, nor together exceed 1.",
        )
        for name in ("noise_density", "frequent_share"):
            value = getattr(self, name)
            require(0.0 < value < 1.0, f"PretrainConfig.{name} = {value}; it must lie in (0, 1).")
        positive(self, "mean_span_length")


@dataclasses.dataclass(frozen=True)
class LlmConfig:
    """Labels of a language model, and the training on them.

    `labels` is the file that launch/annotate.py wrote, its receipt beside it; -1 for `num_labels`
    takes all. `human_share` of a batch of the strategy llm_human, and `gold_share` of one of
    llm_distill, comes from the human labels, and from human and language model's together.
    """

    labels: str = ""
    num_labels: int = -1
    human_share: float = 0.5
    gold_share: float = 0.5
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        require(
            self.num_labels > 0 or self.num_labels == -1,
            f"LlmConfig.num_labels = {self.num_labels}; it must be greater than 0, or -1 for all.",
        )
        for field in ("human_share", "gold_share"):
            value = getattr(self, field)
            require(0.0 < value < 1.0, f"LlmConfig.{field} = {value}; it must lie between 0 and 1.")
