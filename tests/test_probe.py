"""The probe of a run: its figures are those of the training losses, and it proposes a k."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from tiny_run import (
    NETWORK,
    TRAIN,
    final_params,
    open_run,
    snapshot,
    tiny_config,
)

from dora_jax.config import SoftLossConfig, TrainConfig
from dora_jax.data.loader import evaluation_batches
from dora_jax.data.token_store import TokenStore
from dora_jax.launch import probe as program
from dora_jax.model.decode import forced_label, greedy_decode
from dora_jax.model.t5 import plain_batch
from dora_jax.parallel.mesh import make_mesh
from dora_jax.stages import weights
from dora_jax.stages.prepare import prepare
from dora_jax.stages.probe import Model, Probe, probe
from dora_jax.stages.train import finetune, pretrain
from dora_jax.train.step import init_params, make_loss_fn, make_online_loss_fn

pytestmark = pytest.mark.usefixtures("compiled_cheaply", "one_device")
V = NETWORK.vocab_size
LENGTH = 24
MESH = make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that has learned its 24 labels, and a student with hardly any training."""
    directory = tmp_path_factory.mktemp("run") / "tiny"
    teach = dataclasses.replace(
        TRAIN, train_steps=300, eval_every_steps=0, checkpoint_every_steps=300, dropout_rate=0.0
    )
    config = tiny_config(directory, teach=teach)
    with open_run(config) as context:
        store = prepare(context)
        start = weights.Start(NETWORK, "start", lambda: init_params(NETWORK, 0, context.mesh))
        finetune(context, store, "teach", "distill", start, config.teach)
        pretrain(context, store, config.student, "student")
    return directory


@pytest.fixture(scope="module")
def figures(run: Path) -> dict[str, Any]:
    file = run.parent / "probe.json"
    arguments = [f"--run={run}", "--texts=12", f"--k=2,16,64,{V}", f"--json={file}"]
    before = snapshot(run)
    assert program.main(arguments) == 0
    assert snapshot(run) == before
    return json.loads(file.read_text())


def test_the_teacher_is_fine_tuned(run: Path) -> None:
    rows = (run / "teach" / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, rows) if "loss" in row]
    assert losses[-1] < 0.5 < 4.0 < losses[0]


def test_forward_kl_by_bucket_at_64_is_within_a_hundredth(run: Path) -> None:
    """At temperature 1. At 2 as much probability lies in the tail as the teacher is unsure."""
    file = run.parent / "at_1.json"
    assert (
        program.main([f"--run={run}", "--texts=12", "--k=64", "--temperature=1", f"--json={file}"])
        == 0
    )
    errors = json.loads(file.read_text())["choices"][0]["errors"]
    assert errors["bucket"]["gradient"] < 1e-2
    assert errors["bucket"]["loss"] < 1e-2


def test_one_more_class_errs_less_than_none(figures: dict[str, Any]) -> None:
    errors = figures["choices"][2]["errors"]
    assert errors["bucket"]["gradient"] < 0.75 * errors["renormalise"]["gradient"]


def test_more_entries_hold_more_and_err_less(figures: dict[str, Any]) -> None:
    choices = figures["choices"]
    assert [choice["top_k"] for choice in choices] == [2, 16, 64, V]
    masses = [choice["mass"] for choice in choices]
    assert masses == sorted(masses) and 0.2 < masses[0] < 0.9
    assert all(choice["mass_of_worst_percent"] <= choice["mass"] + 1e-6 for choice in choices)
    np.testing.assert_allclose(masses[-1], 1.0, atol=1e-5)
    for tail in ("bucket", "renormalise"):
        errors = [choice["errors"][tail]["gradient"] for choice in choices]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 1e-3  # the store's half precision
    # Unbiased, but one draw of 64 is no expectation.
    assert choices[2]["errors"]["sample"]["gradient"] > choices[2]["errors"]["bucket"]["gradient"]


def test_the_smallest_k_within_the_tolerance_is_proposed(
    run: Path, figures: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    within = [c["top_k"] for c in figures["choices"] if c["errors"]["bucket"]["gradient"] <= 0.01]
    assert figures["proposed"] == min(within) > 2
    assert program.main([f"--run={run}", "--texts=8", "--k=2"]) == 0
    printed = capsys.readouterr().out
    assert "no k here keeps the gradient error of TAIL = 'bucket' within 0.01" in printed
    assert program.main([f"--run={run}", "--texts=8", "--k=2", "--tolerance=5"]) == 0
    assert "proposed: TOP_K = 2" in capsys.readouterr().out


def test_the_errors_are_those_of_the_training_losses(run: Path) -> None:
    """The same two gradients by the functions that training takes, for one batch."""
    teacher = Model(NETWORK, final_params(run, "teach"))
    student = Model(NETWORK, final_params(run, "pretrain-student"))
    pool = TokenStore.open(run / "prepare" / "tokens").examples("unlabeled")
    soft_loss, indices = SoftLossConfig(), list(range(8))
    found = probe(
        teacher, student, pool, indices, soft_loss,
        source_length=LENGTH, target_length=LENGTH, mesh=MESH, top_ks=(4,),
    )  # fmt: skip
    (batch,) = evaluation_batches(pool, 8, LENGTH, indices)
    sources_BS = batch.encoder_tokens_BS
    targets_BT = np.asarray(greedy_decode(*teacher, sources_BS, LENGTH))
    label = forced_label(*teacher, sources_BS, targets_BT, 4, (2.0,))
    plain = plain_batch(sources_BS, np.pad(targets_BT[:, :-1], ((0, 0), (1, 0))))._replace(
        targets_BT=targets_BT, weights_BT=(targets_BT != 0).astype(np.float32)
    )
    soft = plain._replace(
        topk_ids_BTK=label.topk_ids_BTK,
        topk_logits_BTK=np.asarray(label.topk_logits_BTK, np.float16),
        logz_BTZ=label.logz_BTZ,
    )
    train, key = TrainConfig(dropout_rate=0.0), jax.random.key(0)
    online = jax.value_and_grad(make_online_loss_fn(NETWORK, train, NETWORK), has_aux=True)
    (dense, _), dense_grads = jax.jit(online)(student.params, teacher.params, plain, key)
    cached = jax.value_and_grad(make_loss_fn(NETWORK, train), has_aux=True)
    (loss, _), grads = jax.jit(cached)(student.params, soft, key)
    difference = jax.tree.map(lambda a, b: a - b, grads, dense_grads)
    error = found.choices[0].errors["bucket"]
    np.testing.assert_allclose(error.loss, abs(loss - dense) / dense, rtol=1e-2)
    want = optax.tree.norm(difference) / optax.tree.norm(dense_grads)
    np.testing.assert_allclose(error.gradient, want, rtol=1e-2)
    assert found.tokens == (targets_BT != 0).sum() and found.texts == 8


def test_only_defined_estimators_are_probed(run: Path) -> None:
    model = Model(NETWORK, final_params(run, "teach"))
    pool = TokenStore.open(run / "prepare" / "tokens").examples("unlabeled")
    student = Model(NETWORK, final_params(run, "pretrain-student"))

    def errors(divergence: str) -> Probe:
        soft_loss = SoftLossConfig(divergence=divergence)
        return probe(
            model, student, pool, range(8), soft_loss,
            source_length=LENGTH, target_length=LENGTH, mesh=MESH, top_ks=(V,),
        )  # fmt: skip

    reverse = errors("reverse_kl").choices[0].errors
    assert list(reverse) == ["bucket"] and reverse["bucket"].gradient < 2e-3
    assert list(errors("total_variation").choices[0].errors) == ["bucket", "renormalise", "sample"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Which run? Add --run=DIR"),
        (["--run=nowhere"], "nowhere is no run directory"),
        (["--run=RUN", "--k=four"], "--k = 'four'; expected whole numbers"),
        (["--run=RUN", "--k=0,1000"], "from 1 to the vocabulary of 320 pieces"),
        (["--run=RUN", "--texts=0"], "--texts = 0; it must be greater than 0"),
        (["--run=RUN", "--student=distill"], "holds no finished model"),
        (["--run=RUN", "--gin.TOP_K=4"], "this program has flags only"),
    ],
)
def test_errors_teach(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert program.main([argument.replace("RUN", str(run)) for argument in arguments]) == 2
    assert message in capsys.readouterr().err
