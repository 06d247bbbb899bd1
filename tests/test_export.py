"""launch/export.py: the student of a run, its card, and the snippet that loads it."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import (
    NETWORK,
    final_params,
    manifest_of,
    open_run,
    tiny_config,
)

import dora_jax
from dora_jax import strategies
from dora_jax.checkpoints import huggingface, native, t5x
from dora_jax.config import EvaluateConfig
from dora_jax.cost.ledger import Ledger
from dora_jax.data.token_store import TokenStore
from dora_jax.launch import export, predict
from dora_jax.stages import weights

pytestmark = pytest.mark.usefixtures("compiled_cheaply", "one_device")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of both strategies."""
    directory = tmp_path_factory.mktemp("run") / "tiny"
    # That the snippet of the card decodes as the run did shows where a setting matters.
    scoring = EvaluateConfig(
        8, validation_examples=8, bootstrap_resamples=20, no_repeat_ngram_size=2
    )
    with open_run(tiny_config(directory, evaluate=scoring)) as context:
        strategies.run(context)
    _make_it_write_text(directory)
    return directory


def _make_it_write_text(run_directory: Path) -> None:
    """Keeps the hardly trained student from writing bytes that are no text, and sentinels.

    The mean of the other columns of the output head is never the largest of them.
    """
    params = final_params(run_directory, "distill")
    kernel_EV = np.array(params["logits_dense"]["kernel"])
    vocabulary = TokenStore.open(run_directory / "prepare" / "tokens").vocabulary
    pieces = range(3 + 256, vocabulary.pieces)  # behind the bytes
    # EOS, and what is more than a space: the card shows the first answer.
    text = np.array([1, *(i for i in pieces if vocabulary.decode([i]).strip())])
    banned = np.setdiff1d(np.arange(kernel_EV.shape[1]), text)
    kernel_EV[:, banned] = kernel_EV[:, text].mean(axis=1, keepdims=True)
    step = manifest_of(run_directory, "distill")["outputs"]["best_step"]
    state = run_directory / "distill" / "best" / str(step) / "state"
    shutil.rmtree(state)
    native.write_tree(state, {**params, "logits_dense": {"kernel": kernel_EV}})


def run(*arguments: str) -> int:
    before = jax.config.values["jax_platforms"]
    try:
        return export.main(arguments)
    finally:
        jax.config.update("jax_platforms", before)


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distilled student for transformers."""
    folder = tmp_path_factory.mktemp("out") / "student"
    assert run(f"--run={finished}", f"--output={folder}", "--latency_texts=3") == 0
    return folder


def equal(a: object, b: object) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_weights_are_the_chosen_ones(finished: Path, exported: Path) -> None:
    config, params = huggingface.load(exported)
    assert config == NETWORK
    equal(params, final_params(finished, "distill"))


@pytest.mark.parametrize(
    ("model", "stage"), [("annotate", "annotate"), ("teacher", "teach"), ("distill", "distill")]
)
def test_each_model_as_a_t5x_checkpoint(
    finished: Path, tmp_path: Path, model: str, stage: str
) -> None:
    flags = (f"--run={finished}", f"--model={model}", "--format=t5x", "--latency_texts=0")
    assert run(*flags, f"--output={tmp_path / 'out'}") == 0
    equal(t5x.load(tmp_path / "out", expected=NETWORK), final_params(finished, stage))
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"# wlp: {model}" in card
    assert "CPU latency: not measured" in card
    assert "Load with T5X" in card
    assert run(*flags, f"--output={tmp_path / 'out'}") == 0  # replaces its like


def test_the_card_tells_quality_dollars_and_provenance(finished: Path, exported: Path) -> None:
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "> **Rehearsal.**" in card
    scores = manifest_of(finished, "evaluate-distill")["outputs"]["scores"]
    low, high = scores["intervals"][scores["primary"]]
    value = scores["strict"][scores["primary"]]
    assert f"| **{scores['primary']}** | {value:.1f} [{low:.1f}, {high:.1f}] |" in card
    rows = [
        row
        for row in Ledger(finished / "ledger.jsonl").rows()
        if row.stage in strategies.STAGES["distill"]
    ]
    assert {"labels", "teach", "distill"} <= {row.stage for row in rows}
    assert "evaluate-annotate" not in {row.stage for row in rows}
    assert f"- total: {sum(row.dollars for row in rows):,.2f} USD" in card
    assert "36 USD a device-hour" in card
    assert "0.26 USD a label" in card
    assert re.search(r"CPU latency: \d+\.\d ms a text \(median\).*over 3 test texts", card)
    assert manifest_of(finished, "distill")["fingerprint"] in card
    assert "- scale: rehearsal; code " in card


def test_the_snippet_of_the_card_prints_what_the_card_says(
    finished: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("t5_reference")
    card = (exported / "README.md").read_text(encoding="utf-8")
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    promised = re.search(r"```text\n(.*?)\n```", card, re.DOTALL)
    assert snippet is not None
    assert promised is not None
    assert promised[1].strip()
    monkeypatch.chdir(exported)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(snippet[1], {})
    assert printed.getvalue() == promised[1] + "\n"


def test_transformers_decodes_as_we_do(finished: Path, exported: Path) -> None:
    """Tokenizer and model by the auto classes, against our vocabulary and our decoding."""
    reference = pytest.importorskip("t5_reference")
    transformers, torch = reference.transformers, reference.torch
    store = TokenStore.open(finished / "prepare" / "tokens")
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(exported).eval()
    texts = [store.manifest["prompt_prefix"] + text for text in store.sources("test")]
    examples = store.examples("test")
    ids = tokenizer(texts).input_ids
    assert ids == [examples.source(i).tolist() for i in range(len(texts))]
    tokens_BS = np.zeros((len(texts), max(map(len, ids))), np.int32)
    for row, sequence in zip(tokens_BS, ids, strict=True):
        row[: len(sequence)] = sequence
    ours_BT = np.asarray(
        dora_jax.greedy_decode(NETWORK, final_params(finished, "distill"), tokens_BS, 12)
    )
    encoder = torch.from_numpy(tokens_BS).long()
    theirs = model.generate(
        input_ids=encoder,
        attention_mask=(encoder != 0).long(),
        max_new_tokens=12,
        do_sample=False,
    )
    theirs_BT = np.zeros_like(ours_BT)
    theirs_BT[:, : theirs.shape[1] - 1] = theirs[:, 1:].numpy()
    np.testing.assert_array_equal(ours_BT, theirs_BT)
    for row in ours_BT:
        assert tokenizer.decode(row, skip_special_tokens=True) == store.vocabulary.decode(row)


def test_a_stage_of_a_run_is_a_source_of_weights(finished: Path) -> None:
    found = weights.find(f"native:{finished / 'distill'}")
    network, params = found.read(None, NETWORK)
    assert network == NETWORK
    equal(params, final_params(finished, "distill"))
    assert found.extra_ids == 10
    assert found.vocabulary == finished / "prepare" / "tokens" / "vocabulary.model"
    with pytest.raises(ValueError, match=f"native:{finished}/distill"):
        weights.find(f"native:{finished}")


def test_teacher_and_student_have_the_networks_of_their_own(finished: Path, tmp_path: Path) -> None:
    """In a copy whose config.json tells of another student than was trained."""
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config["student"]["network"]["mlp_dim"] = 99
    (copy / "config.json").write_text(json.dumps(config))
    equal(weights.find(f"native:{copy / 'teach'}").read(None, None)[1], final_params(copy, "teach"))
    with pytest.raises(ValueError, match=r"mlp\.wi_0\.kernel expected \(1, 16, 99\)"):
        weights.find(f"native:{copy / 'distill'}").read(None, None)


def test_wrong_requests(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = tmp_path / "half"
    (half / "annotate").mkdir(parents=True)
    (half / "config.json").write_text((finished / "config.json").read_text())
    manifest = json.loads((finished / "annotate" / "manifest.json").read_text())
    del manifest["outputs"]
    (half / "annotate" / "manifest.json").write_text(json.dumps(manifest))
    out = f"--output={tmp_path / 'out'}"
    for arguments, message in (
        ((), "Name the run directory"),
        ((f"--run={tmp_path}", out), "is no run directory: it has no config.json"),
        ((f"--run={half}", out, "--model=annotate"), "holds no finished model"),
        ((f"--run={finished}", f"--output={finished}"), "is no checkpoint of the kind"),
        ((f"--run={finished}", out, "--modle=teacher"), "Did you mean --model?"),
    ):
        assert run(*arguments) == 2, message
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert (finished / "ledger.jsonl").exists()


def test_predicting_with_a_stage_is_what_the_run_did(finished: Path, tmp_path: Path) -> None:
    """Without a flag: lengths and the rule against repeating are the run's."""
    scored = finished / "evaluate-annotate" / "predictions.jsonl"
    out = tmp_path / "out.jsonl"
    stage = finished / "annotate"
    flags = [f"--checkpoint={stage}", "--task=wlp", f"--inputs={scored}", "--compilation_cache="]
    assert predict.main([*flags, f"--outputs={out}"]) == 0

    def predictions(file: Path) -> list[str]:
        return [json.loads(line)["prediction"] for line in file.read_text().splitlines()]

    assert predictions(out) == predictions(scored)
    repeating = tmp_path / "repeating.jsonl"
    assert predict.main([*flags, f"--outputs={repeating}", "--no_repeat_ngram_size=0"]) == 0
    assert predictions(repeating) != predictions(scored)
