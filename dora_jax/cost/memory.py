"""What each stage of a run holds in memory at once, counted by hand.

Trees of the size of the parameters are what counts at T5-XXL: float32 parameters and gradients
are 44.5 GB each, bfloat16 ones half of it. An update holds these two and what the optimizer
keeps, and no third one: `train/optim.py` writes each layer's update into the parameters in place.
The count is on the safe side: packing and XLA's fusions use less. tests/test_memory.py holds it
against compiled programs.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from dora_jax.config import (
    FIRST_LABEL_BATCH,
    MeshConfig,
    ModelSource,
    RunConfig,
    T5Config,
    TrainConfig,
)
from dora_jax.cost.flops import parameter_count

GB = 1e9

# Bytes of optimizer state a parameter. Adafactor keeps a row and a column of each matrix,
# which is next to nothing; AdamW two float32 moments.
SLOT_BYTES = {"adafactor": 0, "adamw": 8}
# Layers whose weights a device holds whole where they are shared: one at work, one on its way.
LAYERS_GATHERED = 2


class Layout(NamedTuple):
    """How devices share a run: `mesh.make_mesh`, by numbers alone."""

    devices: int
    fsdp: int
    tensor: int
    per_host: int = 0  # devices that fast links join; 0: all of them

    @classmethod
    def of(cls, mesh: MeshConfig, devices: int) -> Layout:
        """The mesh of so many devices.

        Raises:
          ValueError: they are no multiple of fsdp × tensor.
        """
        fsdp = max(devices // mesh.tensor, 1) if mesh.fsdp == -1 else mesh.fsdp
        if devices % (fsdp * mesh.tensor):
            raise ValueError(
                f"FSDP = {mesh.fsdp} and TENSOR = {mesh.tensor} need a multiple of "
                f"{fsdp * mesh.tensor} devices; there are {devices}."
            )
        return cls(devices, fsdp, mesh.tensor)

    def crosses(self, together: int) -> bool:
        """Whether so many devices, next to each other, are on more than one host."""
        return 0 < self.per_host < together

    @property
    def row_shards(self) -> int:
        """Devices that split the rows of a batch."""
        return self.devices // self.tensor

    def sharing(self, network: T5Config) -> int:
        """Devices that hold one copy of the parameters together.

        An axis that does not divide its dimension splits nothing (parallel/partitioning.py).
        """
        fsdp = self.fsdp if network.emb_dim % self.fsdp == 0 else 1
        tensor = self.tensor if network.mlp_dim % self.tensor == 0 else 1
        return fsdp * tensor


class StageMemory(NamedTuple):
    """What one stage holds at once."""

    stage: str
    parameters: int
    state_bytes_per_parameter: float
    rows: int
    row_bytes: float  # of activations
    gathered_bytes: float = 0.0  # whole on every device, where devices share the parameters

    @property
    def activation_bytes(self) -> float:
        """Of all rows together."""
        return self.rows * self.row_bytes

    @property
    def total_bytes(self) -> float:
        """Over all devices together, without what each has gathered."""
        return self.parameters * self.state_bytes_per_parameter + self.activation_bytes

    def bytes_per_device(self, row_shards: int, sharing: int) -> float:
        """What the fullest device holds.

        Args:
          row_shards: devices that split the rows.
          sharing: devices that hold one copy of the parameters together.
        """
        state = self.parameters * self.state_bytes_per_parameter / sharing
        gathered = self.gathered_bytes if sharing > 1 else 0.0
        return state + gathered + -(-self.rows // row_shards) * self.row_bytes

    def __str__(self) -> str:
        return (
            f"{self.total_bytes / GB:.0f} GB in stage {self.stage} ({self.parameters / 1e9:.2f} B "
            f"parameters × {self.state_bytes_per_parameter:.3g} bytes, activations "
            f"{self.activation_bytes / GB:.0f} GB)"
        )


def stages_memory(config: RunConfig) -> list[StageMemory]:
    """What each stage of a run holds at once; evaluation is smaller than any of them."""

    def training(stage: str, network: T5Config, train: TrainConfig) -> StageMemory:
        return training_memory(
            stage, network, train, config.data.source_length, config.data.target_length
        )

    def start(name: str, source: ModelSource) -> list[StageMemory]:
        if source.weights:
            return []
        return [training(f"pretrain-{name}", source.network, source.pretrain.train)]

    stages = start("student", config.student)
    if "annotate" in config.strategies:
        stages.append(training("annotate", config.student.network, config.annotate))
    stages += [
        training(name, config.student.network, train) for name, train in llm_students(config)
    ]
    if {"distill", "pretrain"} & set(config.strategies):
        stages += start("teacher", config.teacher)
    if "distill" in config.strategies:
        stages.append(training("teach", config.teacher.network, config.teach))
        stages.append(labelling_memory(config))
        stages.append(training("distill", config.student.network, config.distill))
    for name, train in config.llm_trainings().items():
        stages.append(training(name, config.student.network, train))
    return stages


def llm_students(config: RunConfig) -> list[tuple[str, TrainConfig]]:
    """The stages that train a student on a language model's labels, and their settings."""
    trained = {
        "llm": config.llm.train,
        "llm_human": config.llm.train,
        "llm_distill": config.distill,
    }
    return [(name, train) for name, train in trained.items() if name in config.strategies]


def largest_stage(config: RunConfig) -> StageMemory:
    """The stage that decides whether a machine can hold the run."""
    return max(stages_memory(config), key=lambda stage: stage.total_bytes)


def in_bfloat16(config: RunConfig) -> RunConfig:
    """The run with the teacher's parameters and gradients in bfloat16, half the memory."""
    teacher = dataclasses.replace(config.teacher, param_dtype="bfloat16")
    return dataclasses.replace(config, teacher=teacher)


def training_memory(
    stage: str, network: T5Config, train: TrainConfig, source: int, target: int
) -> StageMemory:
    """One update: parameters, gradients, slots, and activations of unpacked rows.

    Args:
      source, target: length of the rows, tokens.
    """
    size = parameter_bytes(network)
    state = 2 * size + SLOT_BYTES[train.optimizer.name]
    whole = _largest_layer(network) * LAYERS_GATHERED * 2 * size
    whole += 2 * network.vocab_size * network.emb_dim * size  # the head, its gradient
    row = _training_row_bytes(network, train, source, target)
    return StageMemory(stage, parameter_count(network), state, train.batch_size, row, whole)


def labelling_memory(config: RunConfig) -> StageMemory:
    """The teacher's pass: parameters, the decoder's once more as it is read, keys and values."""
    teacher, data = config.teacher.network, config.data
    rows = config.label.batch_size or FIRST_LABEL_BATCH
    positions = data.source_length + data.target_length
    cache = positions * 2 * teacher.num_decoder_layers * joined(teacher) * value_bytes(teacher)
    logits = data.target_length * teacher.vocab_size * 4
    parameters = parameter_count(teacher)
    again = decoder_parameters(teacher) / parameters * value_bytes(teacher)
    size = parameter_bytes(teacher)
    whole = _largest_layer(teacher) * LAYERS_GATHERED * (size + value_bytes(teacher))
    state = size + again
    return StageMemory("label", parameters, state, rows, float(cache + logits), float(whole))


def parameter_bytes(network: T5Config) -> int:
    """Bytes of one parameter, and of its gradient."""
    return 2 if network.param_dtype == "bfloat16" else 4


def value_bytes(network: T5Config) -> int:
    """Bytes of one activation."""
    return 2 if network.dtype == "bfloat16" else 4


def decoder_parameters(network: T5Config) -> int:
    """What decoding one more position reads: the decoder without norms, and the head.

    Keys and values of the source are made once, so their kernels are not read again.
    """
    return (
        network.num_decoder_layers
        * (6 * network.emb_dim * joined(network) + _mlp_parameters(network))
        + network.vocab_size * network.emb_dim
    )


def stored_layer_bytes(network: T5Config, source: int, target: int) -> tuple[float, float]:
    """Activations of one row in one encoder and in one decoder layer, all stored.

    Source: the count of arXiv 2205.05198, section 4.1, tensor by tensor, for T5's layers.
    """
    size = value_bytes(network)

    def attention(queries: int, keys: int) -> float:
        vectors = 2 * network.emb_dim * queries + 2 * joined(network) * (queries + keys)
        scores = 2 * network.num_heads * queries * keys  # before and after the softmax
        return float(vectors * size + scores * 4)

    def mlp(positions: int) -> float:
        hidden = (2 * len(network.mlp_activations) + 1) * network.mlp_dim
        return float(positions * (hidden + 2 * network.emb_dim) * size)

    encoder = attention(source, source) + mlp(source)
    decoder = attention(target, target) + attention(target, source) + mlp(target)
    return encoder, decoder


def _training_row_bytes(network: T5Config, train: TrainConfig, source: int, target: int) -> float:
    """What the backward pass finds stored of one row, and the layer at work."""
    encoder, decoder = stored_layer_bytes(network, source, target)
    width = min(train.vocabulary_block or network.vocab_size, network.vocab_size)
    logits = target * width * (4 + 4)  # float32, and their gradient
    if network.remat_policy == "full":  # only what enters each layer
        entering = network.emb_dim * value_bytes(network)
        stored = entering * (
            network.num_encoder_layers * source + network.num_decoder_layers * target
        )
        # Microbatches take turns within a layer.
        return stored + max(encoder, decoder) / train.microbatches + logits
    return network.num_encoder_layers * encoder + network.num_decoder_layers * decoder + logits


def joined(network: T5Config) -> int:
    """Width of all heads together."""
    return network.num_heads * network.head_dim


def _mlp_parameters(network: T5Config) -> int:
    return (len(network.mlp_activations) + 1) * network.emb_dim * network.mlp_dim


def _largest_layer(network: T5Config) -> int:
    """Parameters of a decoder layer, norms left out."""
    return 8 * network.emb_dim * joined(network) + _mlp_parameters(network)
