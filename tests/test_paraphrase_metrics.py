"""BERT-iBLEU and its halves: hand cases, definitions, a tiny encoder, and life without one."""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from metric_references import authors_bert_ibleu, bert_score_f1, plain_bleu

from dora_jax.metrics import bert_score as scorer
from dora_jax.metrics.bert_score import ScorerMissing, bert_score, matching_f1
from dora_jax.metrics.bleu import sentence_bleu, tokenise_13a
from dora_jax.metrics.paraphrase import bert_ibleu, measure_paraphrases
from dora_jax.tasks.task import get_task

torch = pytest.importorskip("torch", reason="BERTScore's encoder needs torch")
transformers = pytest.importorskip("transformers", reason="and transformers")

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TEXT = "the a man shot in paris police new york storm hits city king dies . ,"
WORDS = tuple(TEXT.split())


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a random BERT of three layers and a tokenizer of sixteen words."""
    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    transformers.utils.logging.disable_progress_bar()
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


def sentences(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(count)]


# --- BLEU


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Hello, world!", "Hello , world !"),
        ("It's 3.5% of 1,000.", "It's 3.5 % of 1,000 ."),
        ("in 2015.", "in 2015 ."),
        ("3-4 well-known", "3 - 4 well-known"),
        ("@user #tag http://x.y", "@ user # tag http : / / x . y"),
        ("&amp; &lt;b&gt; &quot;q&quot;", '& < b > " q "'),
        ("<skipped> ", ""),
    ],
)
def test_tokens_of_mteval_13a(text: str, tokens: str) -> None:
    assert tokenise_13a(text) == tokens.split()


def test_bleu_by_hand() -> None:
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples, and no four in a row ("the cat sat | on a mat").
    prediction, reference = "the cat sat on a mat", "the cat sat by a mat"
    assert sentence_bleu(prediction, reference, smoothed=False) == 0.0
    smoothed = sentence_bleu(prediction, reference, smoothed=True)
    assert smoothed == pytest.approx((5 / 6 * 3 / 5 * 1 / 4 * 1 / (2 * 3)) ** 0.25)
    # A prefix of four words: all precisions 1, brevity e^(1 - 6/4).
    prefix = "the cat sat by"
    for smoothed_or_not in (True, False):
        value = sentence_bleu(prefix, reference, smoothed=smoothed_or_not)
        assert value == pytest.approx(math.exp(-0.5))


def test_a_short_copy_is_a_copy_only_where_smoothed() -> None:
    assert sentence_bleu("Man shot", "Man shot", smoothed=True) == 1.0
    assert sentence_bleu("Man shot", "Man shot", smoothed=False) == 0.0
    assert sentence_bleu("a b c", "x y z", smoothed=True) == 0.0
    # One word of two, no pair: the pair counts half of one.
    assert sentence_bleu("a b", "a c", smoothed=True) == pytest.approx((1 / 2 * 1 / 2) ** 0.5)
    for smoothed in (True, False):
        assert sentence_bleu("", "a", smoothed=smoothed) == 0.0
        assert sentence_bleu("a", "", smoothed=smoothed) == 0.0


def test_plain_bleu_agrees_with_its_definition() -> None:
    rng = random.Random(0)
    for reference in sentences(200, seed=1):
        words = [word for word in reference.split() if rng.random() < 0.8]
        prediction = " ".join([*words, *rng.choices(WORDS, k=rng.randint(0, 2))])
        if not prediction:
            continue
        ours = sentence_bleu(prediction, reference, smoothed=False)
        assert ours == pytest.approx(plain_bleu(prediction.split(), reference.split()), abs=1e-12)


# --- BERTScore


def test_matching_by_hand() -> None:
    east, north = [1.0, 0.0], [0.0, 1.0]
    between = [math.sqrt(0.5), math.sqrt(0.5)]
    candidate, reference = np.array([east, between]), np.array([east, north])
    # Precision: best cosines 1 and √½, weights 3 and 1; recall: 1 and √½, weights 1 and 1.
    precision, recall = (3 + math.sqrt(0.5)) / 4, (1 + math.sqrt(0.5)) / 2
    f1 = matching_f1(candidate, np.array([3.0, 1.0]), reference, np.array([1.0, 1.0]))
    assert f1 == pytest.approx(2 * precision * recall / (precision + recall))
    assert matching_f1(candidate, np.zeros(2), reference, np.ones(2)) == 0.0


def test_bert_score_agrees_with_its_definition(encoder: str) -> None:
    """Embeddings of one text at a time, without padding, and idf and matching in loops."""
    candidates = sentences(40, seed=2)
    references = [text.replace("king", "man") for text in sentences(40, seed=3)]
    assert any("king" in text for text in candidates)  # a word that no reference has
    ours, layer = bert_score(candidates, references, encoder)
    network = transformers.AutoModel.from_pretrained(encoder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    documents = Counter(i for text in references for i in set(tokenizer(text)["input_ids"]))

    def read(text: str) -> tuple[list[list[float]], list[float]]:
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            vectors = network(torch.tensor([ids])).last_hidden_state[0].tolist()
        return vectors, [math.log(41 / (documents[i] + 1)) for i in ids]

    for value, candidate, reference in zip(ours, candidates, references, strict=True):
        (vectors, idf), (others, other_idf) = read(candidate), read(reference)
        assert value == pytest.approx(bert_score_f1(vectors, others, idf, other_idf), abs=1e-5)
    assert layer == 3


def test_the_layer_is_bert_scores_where_it_knows_the_model(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scorer._known_layer("microsoft/deberta-xlarge-mnli") == 40
    snapshot = "/cache/models--microsoft--deberta-xlarge-mnli/snapshots/0123abcd"
    assert scorer._known_layer(snapshot) == 40
    assert scorer._known_layer("/models/my-encoder/") is None

    monkeypatch.setitem(scorer.LAYERS, "known", 2)
    (tmp_path / "known").symlink_to(encoder, target_is_directory=True)
    pairs = sentences(5, seed=4), sentences(5, seed=5)
    of_last, _ = bert_score(*pairs, encoder)
    of_second, layer = bert_score(*pairs, str(tmp_path / "known"))
    assert layer == 2
    # The second layer's outputs, by a network that has all three.
    network = transformers.AutoModel.from_pretrained(encoder, output_hidden_states=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    with torch.no_grad():
        hidden = network(**tokenizer([pairs[0][0]], return_tensors="pt")).hidden_states[2][0]
    loaded = scorer._load_encoder(str(tmp_path / "known"))
    ours = loaded.embed(loaded.tokenise([pairs[0][0]]))[0]
    assert ours == pytest.approx((hidden / hidden.norm(dim=-1, keepdim=True)).numpy(), abs=1e-5)
    assert not np.allclose(of_last, of_second)


def test_empty_equal_and_overlong_texts(encoder: str) -> None:
    candidates = ["", "storm hits city", "paris " * 100, "man"]
    references = ["man shot", "storm hits city", "paris " * 100, ""]
    scores, _ = bert_score(candidates, references, encoder)
    assert scores == pytest.approx([0.0, 1.0, 1.0, 0.0], abs=1e-5)


# --- BERT-iBLEU


def test_bert_ibleu_by_hand() -> None:
    kept, copied = np.array([0.8, 0.8, 0.0, 1.0]), np.array([0.25, 1.0, 0.0, 0.0])
    expected = [1 / ((4 / 0.8 + 1 / 0.75) / 5), 0.0, 0.0, 1.0]
    assert bert_ibleu(kept, copied) == pytest.approx(expected)


def test_both_ways_agree_with_their_definitions(encoder: str) -> None:
    targets, sources = sentences(30, seed=6), sentences(30, seed=7)
    predictions = sentences(30, seed=8)
    predictions[:3] = [targets[0], "", sources[2]]
    measured = measure_paraphrases(targets, predictions, sources, scorer_model=encoder)
    metrics = measured.metrics()
    assert measured.primary == "bert_ibleu" and measured.remarks == ()
    assert measured.notes == {"empty_predictions": 1, "scorer_layer": 3}

    said = [p or "no prediction" for p in predictions]
    kept, _ = bert_score(said, targets, encoder)
    copied = [plain_bleu(p.split(), t.split()) for p, t in zip(said, targets, strict=True)]
    ibleu = [authors_bert_ibleu(k, c) for k, c in zip(kept, copied, strict=True)]
    assert metrics["paper/bert_score"] == pytest.approx(100 * (np.mean(kept) + 1e-5), abs=1e-9)
    assert metrics["paper/self_bleu"] == pytest.approx(100 * (np.mean(copied) + 1e-5), abs=1e-9)
    assert metrics["paper/bert_ibleu"] == pytest.approx(100 * np.mean(ibleu), abs=1e-9)

    kept, _ = bert_score(said, sources, encoder)
    kept = kept.clip(0.0, 1.0)  # rounding of float32 lifts a copy above 1
    kept[1] = 0.0  # nothing was said
    copied = [sentence_bleu(p, s, smoothed=True) for p, s in zip(predictions, sources, strict=True)]
    assert metrics["bert_score"] == pytest.approx(100 * np.mean(kept), abs=1e-9)
    assert metrics["self_bleu"] == pytest.approx(100 * np.mean(copied), abs=1e-9)
    ibleu = [
        0.0 if k == 0 or c == 1 else 1 / ((4 / k + 1 / (1 - c)) / 5)
        for k, c in zip(kept, copied, strict=True)
    ]
    assert ibleu[1] == ibleu[2] == 0.0
    assert metrics["bert_ibleu"] == pytest.approx(100 * np.mean(ibleu), abs=1e-9)
    scores = measured.scores(resamples=100)
    assert set(scores.strict) == set(scores.paper) == {"bert_ibleu", "bert_score", "self_bleu"}
    low, high = scores.interval
    assert low < scores.value < high


def test_one_pass_of_the_encoder_where_the_target_is_the_source(
    encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, predictions = sentences(8, seed=9), ["", *sentences(7, seed=10)]
    loaded: list[str] = []
    load = scorer._load_encoder
    monkeypatch.setattr(scorer, "_load_encoder", lambda m: loaded.append(m) or load(m))
    metrics = measure_paraphrases(texts, predictions, texts, scorer_model=encoder).metrics()
    assert loaded == [encoder]
    assert metrics["bert_score"] < metrics["paper/bert_score"]  # "" and "no prediction"


def test_a_copy_scores_nothing_and_by_the_paper_a_little_less(encoder: str) -> None:
    texts = ["police shot a man in paris", "storm hits new york city ."]
    metrics = measure_paraphrases(texts, texts, texts, scorer_model=encoder).metrics()
    assert (metrics["self_bleu"], metrics["bert_ibleu"]) == (100.0, 0.0)
    assert -0.01 < metrics["paper/bert_ibleu"] < 0.0


def test_a_copy_in_t5s_unicode_form_is_a_copy(tmp_path: Path) -> None:
    source, prediction = "Kit™ at 4\u00a0°C … now", "KitTM at 4 °C ... now"
    metrics = measure_paraphrases(
        [source], [prediction], [source], scorer_model=str(tmp_path / "none")
    ).metrics()
    assert metrics["self_bleu"] == 100.0 > metrics["paper/self_bleu"]


# --- Without an encoder


def check_half(model: str, complaint: str) -> None:
    measured = measure_paraphrases(["a b"], ["a c"], ["a b"], scorer_model=model)
    assert set(measured.metrics()) == {"self_bleu", "paper/self_bleu"}
    assert measured.primary == "self_bleu"
    assert "only its self-BLEU half" in measured.remarks[0]
    assert complaint in measured.remarks[0]
    assert measured.scores(resamples=10).remarks == measured.remarks


def test_without_weights_there_is_the_self_bleu_half(tmp_path: Path) -> None:
    check_half(str(tmp_path / "none"), "there is no folder")
    check_half("nobody/has-this-encoder", "hf download nobody/has-this-encoder")
    check_half(str(tmp_path), "no encoder that transformers can load")
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    check_half(str(tmp_path), "no encoder that transformers can load")


def test_a_checkpoint_without_all_weights_is_refused(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would draw those of the fourth layer at random, and every score with them."""
    (tmp_path / "deep").symlink_to(encoder, target_is_directory=True)
    monkeypatch.setitem(scorer.LAYERS, "deep", 4)
    check_half(str(tmp_path / "deep"), "such as encoder.layer.3.")


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_its_libraries_there_is_the_self_bleu_half(
    missing: str, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ScorerMissing, match="pip install"):
        bert_score(["a"], ["a"], encoder)
    check_half(encoder, "pip install torch transformers")


def test_the_task_takes_its_encoder_and_selects_without_it(tmp_path: Path) -> None:
    task = get_task("multipit_gen").with_scorer_model(str(tmp_path / "none"))
    scores = task.score(["a b"], ["a c"], ["x y"], resamples=10)
    assert "there is no folder" in scores.remarks[0]
    assert task.selection_value(["a man"], ["man shot"], ["x"]) == pytest.approx(100 * 2 / 3)
    assert get_task("nq").with_scorer_model("x") is get_task("nq")


def test_every_example_needs_its_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="source of example 1 is empty"):
        measure_paraphrases(["a", "b"], ["a", "b"], ["a", " "], scorer_model=str(tmp_path))
