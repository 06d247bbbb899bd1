"""probe: what the entries that soft labels leave out change, on a sample of the unlabelled text.

The teacher labels the sample and keeps its whole logits. Beside the loss on these, and its
gradient for the student's parameters, stand those that k kept entries yield, as they come back
from the store.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from dora_jax.config import SoftLossConfig, T5Config
from dora_jax.data.loader import evaluation_batches
from dora_jax.data.soft_labels import record_dtype
from dora_jax.data.token_store import TokenStore
from dora_jax.model import t5
from dora_jax.model.decode import SoftLabels, greedy_decode, summarise_logits
from dora_jax.model.drawn_labels import draw_label
from dora_jax.model.losses import dense_loss, soft_label_loss
from dora_jax.model.t5 import Params
from dora_jax.parallel import partitioning
from dora_jax.parallel.mesh import make_mesh, whole_pieces
from dora_jax.shapes import PAD_ID, Examples
from dora_jax.stages import manifest, weights
from dora_jax.training_config import TAILS

TOP_KS = (4, 8, 16, 32, 64, 128, 256)
START = "start"  # the student as distillation gets it
_WIDTH_MULTIPLE = 32


@dataclasses.dataclass(frozen=True)
class Error:
    """What one estimator with k entries makes of the dense loss and gradient, relative to them.

    `gradient` is the norm of the difference over the norm, of the gradient for all parameters
    of one batch; the mean over batches.
    """

    loss: float
    gradient: float


@dataclasses.dataclass(frozen=True)
class Choice:
    """One k: what it takes, what it holds, and the error of each estimator by its name."""

    top_k: int
    bytes_per_token: int
    mass: float  # of the teacher's probability on the k largest, at the loss's temperature
    mass_of_worst_percent: float  # the first percentile over tokens
    errors: dict[str, Error]


@dataclasses.dataclass(frozen=True)
class Probe:
    """What was measured. `proposed` is the smallest k within the tolerance; None: none is."""

    texts: int
    tokens: int
    soft_loss: SoftLossConfig
    tolerance: float
    choices: tuple[Choice, ...]
    proposed: int | None


class Model(NamedTuple):
    """A network and its parameters."""

    network: T5Config
    params: Params


def probe(
    teacher: Model,
    student: Model,
    examples: Examples,
    indices: Sequence[int],
    soft_loss: SoftLossConfig,
    *,
    source_length: int,
    target_length: int,
    mesh: Mesh,
    top_ks: Sequence[int] = TOP_KS,
    tails: Sequence[str] = TAILS,
    tolerance: float = 0.01,
    batch_size: int = 8,
    no_repeat_ngram_size: int = 0,
    after_batch: Callable[[int], object] = lambda texts: None,
) -> Probe:
    """Compares estimators and k on some texts.

    Args:
      teacher, student: their parameters on one mesh; dropout is off.
      indices: which of the examples.
      soft_loss: temperature, divergence, and the estimator the proposal is for.
      source_length, target_length: the longest source, the most tokens decoded.
      mesh: where the parameters are.
      top_ks: above the vocabulary, they are left out.
      tails: the estimators to compare, `soft_loss.tail` among them.
      tolerance: the largest relative gradient error a proposed k may have.
      batch_size: texts at once; whole logits of both networks are in memory.
      no_repeat_ngram_size: of the teacher's answers, as when it labels.
      after_batch: called with the number of texts just done.

    Raises:
      ValueError: no k is left, or teacher and student have different vocabularies.
    """
    vocab = teacher.network.vocab_size
    top_ks = sorted({k for k in top_ks if 0 < k <= vocab})
    if not top_ks or student.network.vocab_size != vocab:
        raise ValueError(
            f"A probe compares numbers of entries from 1 to the vocabulary of {vocab} pieces, "
            f"which both networks must have; found top_ks = {list(top_ks)} and a student of "
            f"{student.network.vocab_size} pieces."
        )
    measured, estimators = [], _estimators(soft_loss, tails)
    decode = functools.partial(
        greedy_decode,
        *teacher,
        max_decode_len=target_length,
        no_repeat_ngram_size=no_repeat_ngram_size,
    )
    batches = _batches(decode, examples, indices, source_length, batch_size, mesh)
    for seed, batch in enumerate(batches):
        measured.append(_measure(teacher, student, batch, soft_loss, estimators, top_ks, seed))
        after_batch(batch.texts)
    choices = tuple(_choice(k, vocab, measured) for k in top_ks)
    within = [c.top_k for c in choices if c.errors[soft_loss.tail].gradient <= tolerance]
    tokens = sum(len(one.masses[top_ks[0]]) for one in measured)
    return Probe(len(indices), tokens, soft_loss, tolerance, choices, min(within, default=None))


class _Batch(NamedTuple):
    """The teacher's own answers, padded."""

    texts: int
    encoder_tokens_BS: jax.Array
    decoder_inputs_BT: jax.Array
    weights_BT: np.ndarray


class _Measured(NamedTuple):
    """Of one batch."""

    dense: float
    losses: dict[tuple[str, int], float]  # by estimator and k
    gradient_errors: dict[tuple[str, int], float]
    masses: dict[int, np.ndarray]  # by k, [target tokens]


def _measure(
    teacher: Model,
    student: Model,
    batch: _Batch,
    soft_loss: SoftLossConfig,
    estimators: dict[str, SoftLossConfig],
    top_ks: Sequence[int],
    seed: int,
) -> _Measured:
    tokens = batch.encoder_tokens_BS, batch.decoder_inputs_BT
    teacher_BTV, student_BTV = t5.forward(*teacher, *tokens), t5.forward(*student, *tokens)
    norm = functools.partial(_gradient_norm, *student, *tokens)
    dense, dense_grad_BTV = _dense(soft_loss, student_BTV, teacher_BTV, batch.weights_BT)
    dense_norm = float(norm(dense_grad_BTV))
    measured = _Measured(float(dense), {}, {}, {})
    for k in top_ks:
        for tail, config in estimators.items():
            label = _label(tail, k, soft_loss.temperature, teacher_BTV, seed)
            loss, grad_BTV = _estimate(config, student_BTV, label, batch.weights_BT)
            measured.losses[tail, k] = float(loss)
            difference = float(norm(grad_BTV - dense_grad_BTV))
            measured.gradient_errors[tail, k] = difference / dense_norm
        mass_BT = _mass(k, soft_loss.temperature, teacher_BTV)
        measured.masses[k] = mass_BT[batch.weights_BT > 0]
    return measured


def _choice(top_k: int, vocab: int, measured: Sequence[_Measured]) -> Choice:
    dense = sum(one.dense for one in measured)
    mass = np.concatenate([one.masses[top_k] for one in measured])
    errors = {}
    for tail, k in measured[0].losses:
        if k == top_k:
            loss = sum(one.losses[tail, k] for one in measured)
            gradient = np.mean([one.gradient_errors[tail, k] for one in measured])
            errors[tail] = Error(abs(loss - dense) / dense, float(gradient))
    worst = float(np.quantile(mass, 0.01))
    size = record_dtype(vocab, top_k, num_temperatures=2).itemsize
    return Choice(top_k, size, float(mass.mean()), worst, errors)


def _estimators(soft_loss: SoftLossConfig, tails: Sequence[str]) -> dict[str, SoftLossConfig]:
    """The loss with each tail under which its divergence is defined."""
    found = {}
    for tail in tails:
        try:
            found[tail] = dataclasses.replace(soft_loss, tail=tail)
        except ValueError:
            continue
    return found


def _batches(
    decode: Callable[..., jax.Array],
    examples: Examples,
    indices: Sequence[int],
    source_length: int,
    batch_size: int,
    mesh: Mesh,
) -> Iterator[_Batch]:
    sharding = partitioning.batch_sharding(mesh)
    batch_size = whole_pieces(batch_size, mesh)
    for batch in evaluation_batches(examples, batch_size, source_length, indices):
        tokens_BS = jax.device_put(batch.encoder_tokens_BS, sharding)
        targets_BT = np.array(decode(encoder_tokens_BS=tokens_BS))
        targets_BT[batch.indices_B < 0] = PAD_ID
        longest = int((targets_BT != PAD_ID).sum(axis=1).max())
        width = -(-longest // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
        targets_BT = targets_BT[:, :width]
        inputs_BT = np.pad(targets_BT[:, :-1], ((0, 0), (1, 0)), constant_values=PAD_ID)
        weights_BT = (targets_BT != PAD_ID).astype(np.float32)
        texts = int((batch.indices_B >= 0).sum())
        yield _Batch(texts, tokens_BS, jax.device_put(inputs_BT, sharding), weights_BT)


@functools.partial(jax.jit, static_argnums=0)
def _gradient_norm(
    network: T5Config, params: Params, tokens_BS: Any, inputs_BT: Any, cotangent_BTV: jax.Array
) -> jax.Array:
    """The norm of what a gradient for the logits is for the parameters."""
    _, pull_back = jax.vjp(lambda params: t5.forward(network, params, tokens_BS, inputs_BT), params)
    return optax.tree.norm(pull_back(cotangent_BTV)[0])


@functools.partial(jax.jit, static_argnums=0)
def _dense(config: SoftLossConfig, student_BTV: Any, teacher_BTV: Any, weights_BT: Any) -> Any:
    return jax.value_and_grad(lambda x: dense_loss(x, teacher_BTV, weights_BT, config)[0])(
        student_BTV
    )


@functools.partial(jax.jit, static_argnums=0)
def _estimate(
    config: SoftLossConfig, student_BTV: Any, label: SoftLabels, weights_BT: Any
) -> tuple[jax.Array, jax.Array]:
    # The store's precision.
    kept = label.topk_ids_BTK, label.topk_logits_BTK.astype(jnp.float16), label.logz_BTZ[..., 0]
    return jax.value_and_grad(lambda x: soft_label_loss(x, *kept, weights_BT, config)[0])(
        student_BTV
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _label(
    tail: str, top_k: int, temperature: float, logits_BTV: jax.Array, seed: jax.Array | int
) -> SoftLabels:
    batch, length, vocab = logits_BTV.shape
    logits_NV = logits_BTV.reshape(-1, vocab)
    if tail == "sample":
        keys_N = jax.random.split(jax.random.key(seed), len(logits_NV))
        label = draw_label(logits_NV, keys_N, top_k, temperature, (temperature,))
    else:
        label = summarise_logits(logits_NV, top_k, (temperature,))
    return jax.tree.map(lambda leaf: leaf.reshape(batch, length, *leaf.shape[1:]), label)


def _mass(top_k: int, temperature: float, logits_BTV: jax.Array) -> np.ndarray:
    label = _label("bucket", top_k, temperature, logits_BTV, 0)
    return np.asarray(jnp.exp(label.topk_logits_BTK / temperature - label.logz_BTZ).sum(axis=-1))


def probe_run(
    run: Path,
    *,
    student: str = START,
    texts: int = 64,
    temperature: float | None = None,
    top_ks: Sequence[int] = TOP_KS,
    tolerance: float = 0.01,
    batch_size: int = 8,
    after_batch: Callable[[int], object] = lambda texts: None,
) -> Probe:
    """The probe for a run whose teacher is trained, on texts drawn from its unlabelled split.

    Args:
      run: the run directory; nothing in it is changed.
      student: START, or a stage of the run that has trained it.
      temperature: of the loss; None takes the run's.

    Raises:
      ValueError: there is no such run or stage, or the stage has not finished.
    """
    if not (run / "config.json").is_file():
        raise ValueError(f"{run} is no run directory: it has no config.json.")
    config = manifest.read_json(run / "config.json")
    mesh = make_mesh()
    trained_teacher = weights.trained(run, "teach")
    started = student != START or not config["student"]["weights"]
    trained_student = (
        weights.trained(run, "pretrain-student" if student == START else student)
        if started
        else weights.find(config["student"]["weights"])
    )
    store = TokenStore.open(config["data"]["token_store"] or run / "prepare" / "tokens")
    pool = store.examples("unlabeled")
    drawn = np.random.default_rng(0).permutation(len(pool))[:texts]
    soft_loss = SoftLossConfig(**config["distill"]["soft_loss"])
    if temperature is not None:
        soft_loss = dataclasses.replace(soft_loss, temperature=temperature)
    return probe(
        Model(*trained_teacher.read(mesh, None)),
        Model(*trained_student.read(mesh, None)),
        pool,
        drawn.tolist(),
        soft_loss,
        source_length=config["data"]["source_length"],
        target_length=config["data"]["target_length"],
        mesh=mesh,
        top_ks=top_ks,
        tolerance=tolerance,
        batch_size=batch_size,
        no_repeat_ngram_size=config["label"].get("no_repeat_ngram_size", 0),
        after_batch=after_batch,
    )
