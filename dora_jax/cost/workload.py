"""What a run has to do, stage by stage: updates and decoding steps, their rows and tokens.

Lengths and counts come from a prepared token store where there is one, else from stated
assumptions (`calibrations.json`, "data").
"""

from __future__ import annotations

import math
from typing import NamedTuple

from dora_jax.config import (
    FIRST_LABEL_BATCH,
    ModelSource,
    RunConfig,
    T5Config,
    TrainConfig,
)
from dora_jax.cost import calibrations
from dora_jax.cost.flops import TokenCounts
from dora_jax.cost.memory import llm_students

_LENGTH_MULTIPLE = 16  # of packed rows, as data.loader.balanced_row_lengths makes them
_EVALUATION_WIDTHS = 5  # as data.loader.EVALUATION_WIDTHS


class DataFacts(NamedTuple):
    """How much data a run has, and how long its examples are on average."""

    labels: int
    unlabeled: int
    validation: int
    test: int
    source_tokens: float  # mean, without padding
    target_tokens: float
    origin: str  # where the figures are from, for people


class Decoding(NamedTuple):
    """Decoding some examples in batches of full size."""

    examples: int
    batches: int
    rows: int  # of a batch
    positions: int  # decoded one after the other in a batch, at most
    source_length: int  # padded


class StageWork(NamedTuple):
    """One stage: its updates, what it decodes, and what else takes time."""

    stage: str
    network: T5Config
    train: TrainConfig | None
    steps: int  # updates
    rows: int  # of an update, padding rows included
    source_length: int  # of a row
    target_length: int
    useful: TokenCounts  # of an update, without padding
    decoding: Decoding | None
    programs: int  # of updates, to compile
    decoding_programs: int
    checkpoints: int  # written
    loads_weights: bool

    @property
    def padded(self) -> TokenCounts:
        """What the devices compute in an update, padding and masked pairs included."""
        source, target = self.rows * self.source_length, self.rows * self.target_length
        return TokenCounts(
            source,
            target,
            source * self.source_length,
            target * self.target_length,
            source * self.target_length,
        )


def assumed_facts(config: RunConfig) -> DataFacts:
    """What is taken for the data where nobody has looked at them yet."""
    assumed, data = calibrations.load().data, config.data
    share = assumed["length_share"]["value"]
    texts = config.distill.train_steps * config.distill.batch_size
    unlabeled = round(texts * (1 - config.distill.gold_share) / assumed["distill_epochs"]["value"])
    return DataFacts(
        labels=data.num_labels if data.num_labels > 0 else 1000,
        unlabeled=data.num_unlabeled if data.num_unlabeled >= 0 else unlabeled,
        validation=config.evaluate.validation_examples,
        test=data.num_test if data.num_test > 0 else assumed["test_examples"]["value"],
        source_tokens=max(1.0, share * data.source_length),
        target_tokens=max(1.0, share * data.target_length),
        origin=(
            f"assumed: examples of a third of the longest ({share * data.source_length:.0f} + "
            f"{share * data.target_length:.0f} tokens), TRAIN_STEPS of "
            f"{assumed['distill_epochs']['value']} epochs, "
            f"{assumed['test_examples']['value']:,} test rows where NUM_TEST is -1"
        ),
    )


def stages_work(config: RunConfig, facts: DataFacts, row_shards: int) -> list[StageWork]:
    """The stages of a run in its order; `row_shards` devices split the rows of a batch."""
    plan = _Plan(config, facts, row_shards)
    student, teacher = config.student, config.teacher
    stages = plan.start("student", student)
    if "annotate" in config.strategies:
        stages.append(plan.training("annotate", student, config.annotate))
        stages.append(plan.evaluation("annotate", student.network))
    for name, train in llm_students(config):
        stages.append(plan.training(name, student, train))
        stages.append(plan.evaluation(name, student.network))
    if {"distill", "pretrain"} & set(config.strategies):
        stages += plan.start("teacher", teacher)
    if "distill" in config.strategies:
        stages.append(plan.training("teach", teacher, config.teach))
        stages.append(plan.evaluation("teacher", teacher.network))
        stages.append(plan.labelling())
        stages.append(plan.training("distill", student, config.distill))
        stages.append(plan.evaluation("distill", student.network))
    for name, train in config.llm_trainings().items():
        stages.append(plan.training(name, student, train))
        stages.append(plan.evaluation(name, student.network))
    return stages


class _Plan(NamedTuple):
    """What all stages of a run are planned from."""

    config: RunConfig
    facts: DataFacts
    row_shards: int

    def start(self, name: str, source: ModelSource) -> list[StageWork]:
        if source.weights:
            return []
        return [self.training(f"pretrain-{name}", source, source.pretrain.train)]

    def training(self, stage: str, source: ModelSource, train: TrainConfig) -> StageWork:
        config, facts = self.config, self.facts
        is_pretraining = stage.startswith("pretrain")
        source_tokens = target_tokens = facts.source_tokens  # pretraining copies, or nearly so
        if not is_pretraining:
            target_tokens = facts.target_tokens
        longest = config.data.source_length, config.data.target_length
        if is_pretraining:
            longest = longest[0], max(longest)
        lengths = row_lengths(train, longest, source_tokens, target_tokens)
        fill = calibrations.load().data["packing_fill"]
        fill = fill["one_bucket"] if train.row_buckets == 1 else fill["value"]
        needed = train.batch_size * max(source_tokens / lengths[0], target_tokens / lengths[1])
        examples = train.batch_size
        decoding, evaluations = None, 0
        if not is_pretraining:
            evaluations = max(1, train.train_steps // (train.eval_every_steps or train.train_steps))
            validated = min(config.evaluate.validation_examples, facts.validation)
            decoding = self._decoding(evaluations, validated, config.evaluate.batch_size)
        return StageWork(
            stage=stage,
            network=source.network,
            train=train,
            steps=train.train_steps,
            rows=_multiple(needed / fill, self.row_shards * train.microbatches),
            source_length=lengths[0],
            target_length=lengths[1],
            useful=_mean_counts(examples, source_tokens, target_tokens),
            decoding=decoding,
            programs=train.row_buckets,
            decoding_programs=_EVALUATION_WIDTHS if decoding else 0,
            checkpoints=train.train_steps // train.checkpoint_every_steps + max(1, evaluations),
            loads_weights=bool(source.weights) and not is_pretraining,
        )

    def evaluation(self, name: str, network: T5Config) -> StageWork:
        decoding = self._decoding(1, self.facts.test, self.config.evaluate.batch_size)
        return self._decoding_alone(f"evaluate-{name}", network, decoding, 0)

    def labelling(self) -> StageWork:
        label = self.config.label
        batch_size = label.batch_size or FIRST_LABEL_BATCH
        # Forced targets cost less than decoded ones, but they are few.
        texts = self.facts.unlabeled + self.facts.labels * label.human_targets
        decoding = self._decoding(1, texts, batch_size)
        return self._decoding_alone("label", self.config.teacher.network, decoding, label.widths)

    def _decoding_alone(
        self, stage: str, network: T5Config, decoding: Decoding, programs: int
    ) -> StageWork:
        nothing = TokenCounts(0, 0, 0, 0, 0)
        # Evaluation finds the programs of validation, which the stage before has compiled.
        return StageWork(stage, network, None, 0, 0, 0, 0, nothing, decoding, 0, programs, 0, True)

    def _decoding(self, times: int, examples: int, batch_size: int) -> Decoding:
        rows = _multiple(batch_size, self.row_shards)
        # Sorted by length and padded to one of a few widths, so close to the mean.
        step = math.ceil(self.config.data.source_length / _EVALUATION_WIDTHS)
        width = min(_multiple(self.facts.source_tokens, step), self.config.data.source_length)
        return Decoding(
            times * examples,
            times * math.ceil(examples / rows),
            rows,
            self.config.data.target_length,
            width,
        )


def row_lengths(
    train: TrainConfig, longest: tuple[int, int], source_tokens: float, target_tokens: float
) -> tuple[int, int]:
    """Lengths of packed rows, balanced as `data.loader.balanced_row_lengths` balances them."""
    source = train.pack_source_length or longest[0]
    target = train.pack_target_length or longest[1]
    wanted_source = round(target * source_tokens / target_tokens / _LENGTH_MULTIPLE)
    wanted_target = round(source * target_tokens / source_tokens / _LENGTH_MULTIPLE)
    return (
        max(source, wanted_source * _LENGTH_MULTIPLE),
        max(target, wanted_target * _LENGTH_MULTIPLE),
    )


def _mean_counts(examples: int, source: float, target: float) -> TokenCounts:
    """Counts of examples that are all of mean length."""
    return TokenCounts(
        round(examples * source),
        round(examples * target),
        round(examples * source * source),
        round(examples * target * (target + 1) / 2),
        round(examples * source * target),
    )


def decoded_counts(work: StageWork, facts: DataFacts) -> TokenCounts:
    """The tokens of all that a stage decodes, without padding."""
    examples = work.decoding.examples if work.decoding else 0
    return _mean_counts(examples, facts.source_tokens, facts.target_tokens)


def _multiple(number: float, of: int) -> int:
    return max(1, math.ceil(number / of)) * of
