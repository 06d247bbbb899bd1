"""The label stage: a teacher padded further than the student; answers that are drawn."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from tiny_run import NETWORK, TRAIN, open_run, tiny_config

from dora_jax import predict
from dora_jax.config import LabelConfig, ModelSource, RunConfig, T5Config
from dora_jax.data.soft_labels import SoftLabelReader
from dora_jax.data.token_store import concatenate
from dora_jax.model import t5
from dora_jax.model.decode import SoftLabels, forced_label
from dora_jax.model.sampling import Sampling
from dora_jax.model.t5 import Params
from dora_jax.parallel.mesh import make_mesh
from dora_jax.predict import decode
from dora_jax.predict import label as label_examples
from dora_jax.shapes import EOS_ID, PAD_ID, Examples
from dora_jax.stages import train, weights
from dora_jax.stages.label import label, within
from dora_jax.stages.prepare import prepare
from dora_jax.stages.train import distill, finetune
from dora_jax.train.step import init_params

pytestmark = pytest.mark.usefixtures("compiled_cheaply", "one_device")


def fond_of_padding(network: T5Config, mesh: Mesh) -> Params:
    """Parameters under which the ids above NETWORK's are likely."""
    params = init_params(network, 0, mesh)
    embedding_VE = params["token_embedder"]["embedding"]
    loud_VE = embedding_VE.at[NETWORK.vocab_size :].mul(5.0)
    return {**params, "token_embedder": {"embedding": loud_VE}}


@pytest.mark.parametrize("tied", [False, True])
def test_ids_that_only_the_teacher_has_are_never_labelled(tmp_path: Path, tied: bool) -> None:
    wide = dataclasses.replace(NETWORK, vocab_size=384, logits_via_embedding=tied)
    short = dataclasses.replace(TRAIN, train_steps=2, eval_every_steps=0)
    how = LabelConfig(top_k=8, batch_size=8, shard_examples=24)
    config: RunConfig = tiny_config(
        tmp_path / "run", teacher=ModelSource(wide), teach=short, distill=short, label=how
    )
    with open_run(config) as context:
        store = prepare(context)
        start = weights.Start(wide, "wide", lambda: fond_of_padding(wide, context.mesh))
        teacher = finetune(context, store, "teach", "distill", start, config.teach)
        labels = label(context, store, within(context, teacher, NETWORK.vocab_size), how)
        whole = teacher.params(context)
        student = weights.Start(NETWORK, "narrow", lambda: init_params(NETWORK, 1, context.mesh))
        # A wrong id would give no finite loss.
        distill(context, store, student, labels.unlabeled, short)

    reader = SoftLabelReader.open(labels.unlabeled, {})
    assert reader.header.vocabulary_size == NETWORK.vocab_size
    wanted = 0
    for i in range(4):
        row, source = reader.row(i), store.examples("unlabeled").source(i)
        inputs_1T = np.concatenate([[PAD_ID], row.tokens_T[:-1]])[None]
        logits_TV = np.asarray(t5.forward(wide, whole, source[None], inputs_1T), np.float64)[0]
        wanted += int((np.argsort(-logits_TV)[:, :8] >= NETWORK.vocab_size).sum())
        log_p_TV = np.asarray(jax.nn.log_softmax(logits_TV[:, : NETWORK.vocab_size]))
        stored_TK = row.topk_logits_TK.astype(np.float64) - row.logz_TZ[:, :1]
        np.testing.assert_allclose(
            stored_TK, np.take_along_axis(log_p_TV, row.topk_ids_TK, axis=1), atol=2e-3
        )
        np.testing.assert_array_equal(row.tokens_T, log_p_TV.argmax(axis=1))
    assert wanted > 0  # the teacher would have said some


@pytest.mark.slow
def test_the_gold_share_learns_the_teachers_labels_of_human_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = dataclasses.replace(TRAIN, train_steps=1, eval_every_steps=0)
    gold = dataclasses.replace(short, gold_share=0.5)
    how = LabelConfig(top_k=8, batch_size=8, shard_examples=8, human_targets=True)
    config = tiny_config(tmp_path / "run", teach=short, distill=gold, label=how)
    trained_on: dict[str, Any] = {}
    with open_run(config) as context:
        store = prepare(context)
        human = store.examples("train")
        start = weights.Start(NETWORK, "start", lambda: init_params(NETWORK, 0, context.mesh))
        teacher = finetune(context, store, "teach", "distill", start, short)
        stores = label(context, store, within(context, teacher, NETWORK.vocab_size), how)
        assert stores.human is not None
        # One damaged shard of the human targets is made again, and no other.
        shards = sorted(stores.human.glob("shard*"))
        before = {path: path.stat().st_mtime_ns for path in shards}
        damaged = next(path for path in shards if path.suffix != ".json")
        damaged.write_bytes(damaged.read_bytes()[:-1])
        label(context, store, within(context, teacher, NETWORK.vocab_size), how)
        renewed = [path for path in shards if path.stat().st_mtime_ns != before[path]]
        assert {path.stem for path in renewed} == {damaged.stem}

        monkeypatch.setattr(train, "_train", lambda *args, **others: trained_on.update(others))
        distill(context, store, start, stores.unlabeled, gold, human_labels=stores.human)
        params = teacher.params(context)
    source = trained_on["gold"]
    assert len(source) == len(human)
    for i in range(4):
        example, target = source.example(i, 0), human.target(i)
        np.testing.assert_array_equal(example.target, target)
        wanted = forced_label(
            NETWORK, params, human.source(i)[None], target[None], 8, how.temperatures
        )
        assert example.soft is not None
        np.testing.assert_allclose(
            example.soft.topk_logits_TK, np.asarray(wanted.topk_logits_BTK)[0], atol=2e-3
        )


def test_human_targets_that_no_update_would_see_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Set GOLD_SHARE above 0"):
        tiny_config(tmp_path, label=LabelConfig(human_targets=True))


def test_a_teacher_no_wider_than_the_student_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path / "run", teach=dataclasses.replace(TRAIN, train_steps=1))
    with open_run(config) as context:
        store = prepare(context)
        start = weights.Start(NETWORK, "start", lambda: init_params(NETWORK, 0, context.mesh))
        teacher = finetune(context, store, "teach", "distill", start, config.teach)
        for vocab_size in (NETWORK.vocab_size, NETWORK.vocab_size + 64):
            found = within(context, teacher, vocab_size)
            assert (found.network, found.fingerprint) == (NETWORK, teacher.fingerprint)
            shapes = jax.tree.map(lambda leaf: leaf.shape, found.params())
            assert shapes == jax.tree.map(lambda leaf: leaf.shape, teacher.params(context))


def test_drawn_answers_are_those_of_sampling_whatever_the_batch() -> None:
    mesh, length = make_mesh(devices=jax.devices()[:1]), 6
    params = init_params(NETWORK, 0, mesh)
    rng = np.random.default_rng(0)
    sources = [[*rng.integers(2, 320, 7).tolist(), EOS_ID] for _ in range(5)]
    examples = Examples(*concatenate(sources), *concatenate([[]] * 5))
    config = LabelConfig(top_k=4, batch_size=2, sampling_temperature=1.5)
    lengths = {"source_length": 16, "target_length": length}
    every = {"mesh": mesh, "seed": 3, **lengths}
    rows = label_examples(NETWORK, params, examples, range(5), config, **every)
    at_once = dataclasses.replace(config, batch_size=5)
    again = label_examples(NETWORK, params, examples, range(5), at_once, **every)
    drawn = decode(NETWORK, params, examples, batch_size=5, decoding=Sampling(1.5), **every)
    greedy = decode(NETWORK, params, examples, batch_size=5, **every)
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(drawn, greedy, strict=True))
    for row, other, tokens, source in zip(rows, again, drawn, sources, strict=True):
        np.testing.assert_array_equal(row.tokens_T[: len(tokens)], tokens)
        assert len(row.tokens_T) == len(tokens) + row.has_ended
        np.testing.assert_array_equal(row.tokens_T, other.tokens_T)
        targets_1T = np.zeros((1, length), np.int32)
        targets_1T[0, : len(row.tokens_T)] = row.tokens_T
        wanted = forced_label(NETWORK, params, np.array([source]), targets_1T, 4, (1.0, 2.0))
        here = slice(len(row.tokens_T))
        np.testing.assert_array_equal(row.topk_ids_TK, np.asarray(wanted.topk_ids_BTK)[0, here])
        np.testing.assert_allclose(
            row.topk_logits_TK, np.asarray(wanted.topk_logits_BTK)[0, here], atol=1e-4
        )


def test_drawing_and_ruling_repetitions_out_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="only greedy decoding rules repetitions out"):
        LabelConfig(sampling_temperature=1.0, no_repeat_ngram_size=5)


def test_sources_are_padded_to_as_many_widths_as_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of rows of 1 to 80 tokens: 16, 32, 48, 64, 80; or 48 and 80; or 80."""
    mesh = make_mesh(devices=jax.devices()[:1])
    params = init_params(NETWORK, 0, mesh)
    sources = [[5] * length for length in range(1, 81, 8)]
    examples = Examples(*concatenate(sources), *concatenate([[]] * len(sources)))
    seen: set[int] = set()

    def record(network: T5Config, params: Params, tokens_BS: jax.Array, *_: object) -> tuple:
        seen.add(tokens_BS.shape[1])
        rows = len(tokens_BS)
        soft = SoftLabels(*(jnp.zeros((rows, 1, 1)) for _ in range(4)))
        return np.ones((rows, 1), np.int32), soft

    monkeypatch.setattr(predict, "greedy_label", record)
    for widths, wanted in ((5, {16, 32, 48, 64, 80}), (2, {48, 80}), (1, {80})):
        seen.clear()
        config = LabelConfig(batch_size=1, widths=widths)
        label_examples(
            NETWORK,
            params,
            examples,
            range(len(sources)),
            config,
            source_length=80,
            target_length=1,
            mesh=mesh,
        )
        assert seen == wanted
