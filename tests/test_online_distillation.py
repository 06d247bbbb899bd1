"""Distilling from the teacher itself: the authors' loss in PyTorch, and cached labels beside it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

reference = pytest.importorskip("t5_reference")
torch = pytest.importorskip("torch")

from dora_jax.checkpoints import huggingface  # noqa: E402
from dora_jax.config import LabelConfig, RunConfig, SoftLossConfig, TrainConfig  # noqa: E402
from dora_jax.model.decode import forced_label  # noqa: E402
from dora_jax.model.losses import batch_loss  # noqa: E402
from dora_jax.model.t5 import plain_batch  # noqa: E402
from dora_jax.shapes import Seq2SeqBatch  # noqa: E402
from dora_jax.train.step import make_loss_fn, make_online_loss_fn  # noqa: E402

pytestmark = pytest.mark.usefixtures("compiled_cheaply")

V, TEMPERATURE = 48, 2.0
SOURCES_BS, _ = reference.random_rows(0, 4, 9, 7)
TARGETS_BT = np.random.default_rng(1).integers(2, V, (4, 7)).astype(np.int32)
for _row, _length in enumerate((7, 3, 5, 2)):
    TARGETS_BT[_row, _length - 1 :] = [1] + [0] * (7 - _length)
KEY = jax.random.key(0)


def authors_loss(student: Any, teacher: Any) -> Any:
    """As their script writes it: padding counts, in the sum and in the mean over rows."""
    tokens = torch.from_numpy(SOURCES_BS).long()
    arguments = {
        "input_ids": tokens,
        "attention_mask": (tokens != 0).long(),
        "labels": torch.from_numpy(TARGETS_BT).long(),
    }
    with torch.no_grad():
        teacher_logits = teacher(**arguments).logits
    logits = student(**arguments).logits
    divergence = torch.nn.KLDivLoss(reduction="batchmean")(
        torch.nn.functional.log_softmax(logits.view(-1, V) / TEMPERATURE, dim=-1),
        torch.nn.functional.softmax(teacher_logits.view(-1, V) / TEMPERATURE, dim=-1),
    )
    return divergence * TEMPERATURE**2


def padded_batch() -> Seq2SeqBatch:
    inputs_BT = np.pad(TARGETS_BT[:, :-1], ((0, 0), (1, 0)))
    return plain_batch(SOURCES_BS, inputs_BT)._replace(
        targets_BT=TARGETS_BT, weights_BT=(TARGETS_BT != 0).astype(np.float32)
    )


def config(**soft_loss: Any) -> TrainConfig:
    return TrainConfig(dropout_rate=0.0, soft_loss=SoftLossConfig(**soft_loss))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """(loss of the authors, (student, teacher), the gradient of that loss), as ours load them."""
    folder = tmp_path_factory.mktemp("models")
    student, teacher = (reference.make_model("v1.1", seed) for seed in (0, 1))
    ours = [
        huggingface.load(reference.save_model(model, folder / name))
        for model, name in ((student, "student"), (teacher, "teacher"))
    ]
    loss = authors_loss(student, teacher)
    loss.backward()
    for tensor in student.parameters():
        tensor.data = tensor.grad
    _, grads = huggingface.load(reference.save_model(student, folder / "gradient"))
    return loss.item(), ours, grads


def online(models: Any, train: TrainConfig) -> Any:
    """((loss sum, weight sum), gradient of the sum)."""
    (network, params), (teacher, teacher_params) = models[1]
    loss_fn = make_online_loss_fn(network, train, teacher)
    return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
        params, teacher_params, padded_batch(), KEY
    )


def test_paper_compat_is_the_authors_loss(models: Any) -> None:
    (total, weight), grads = online(models, config(paper_compat=True))
    assert weight == TARGETS_BT.size
    np.testing.assert_allclose(total / weight, models[0], rtol=1e-5)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(
            ours / weight, theirs, atol=1e-5 * np.abs(theirs).max()
        ),
        grads,
        models[2],
    )


def test_without_it_padding_does_not_count(models: Any) -> None:
    (total, weight), _ = online(models, config())
    assert weight == (TARGETS_BT != 0).sum() == 17
    assert abs(total / weight - models[0]) > 0.01 * models[0]


def labelled_batch(models: Any, top_k: int) -> Seq2SeqBatch:
    teacher, params = models[1][1]
    label = forced_label(teacher, params, SOURCES_BS, TARGETS_BT, top_k, (TEMPERATURE,))
    return padded_batch()._replace(
        topk_ids_BTK=label.topk_ids_BTK,
        topk_logits_BTK=label.topk_logits_BTK,
        logz_BTZ=label.logz_BTZ,
    )


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_cached_labels_of_the_whole_vocabulary_are_the_online_teacher(
    models: Any, share: float
) -> None:
    network, params = models[1][0]
    train = dataclasses.replace(config(hard_label_share=share), z_loss=1e-3)
    (want, weight), want_grads = online(models, train)
    loss_fn = jax.jit(jax.value_and_grad(make_loss_fn(network, train), has_aux=True))
    (total, cached_weight), grads = loss_fn(params, labelled_batch(models, V), KEY)
    assert weight == cached_weight
    np.testing.assert_allclose(total, want, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max()),
        grads,
        want_grads,
    )


def test_paper_compat_is_refused_where_labels_are_cached(models: Any) -> None:
    batch = labelled_batch(models, 4)
    with pytest.raises(ValueError, match="padding positions, about which cached soft labels"):
        batch_loss(np.zeros((4, 7, V), np.float32), batch, config(paper_compat=True), 0)


def test_a_run_refuses_it_before_it_starts() -> None:
    with pytest.raises(ValueError, match="paper_compat: a run distils from cached labels"):
        RunConfig("somewhere", "rehearsal", distill=config(paper_compat=True), label=LabelConfig())
