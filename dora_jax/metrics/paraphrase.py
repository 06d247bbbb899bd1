"""BERT-iBLEU: does a paraphrase keep the meaning and change the words?

BERT-iBLEU = ((β / BERTScore + 1 / (1 - self-BLEU)) / (β + 1))⁻¹ with β = 4, the weighted harmonic
mean of meaning kept and words changed; of each sentence, then the mean over sentences.

*Strict* compares each prediction with its source: smoothed self-BLEU on NFKC forms, so that a copy
of a short sentence is a copy; an empty prediction scores 0. *Paper* is the authors' script: it
compares with the target (in their test file that is the source), does not smooth, scores an empty
prediction as the text "no prediction", and adds 0.00001 to both halves, which makes a copy's score
slightly negative.

Source: Niu et al., EMNLP 2021 (the metric); run_t5.py of github.com/jm-kang/Distill-or-Annotate
(7f4465f), `compute_metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dora_jax.metrics.bert_score import ScorerMissing, bert_score
from dora_jax.metrics.bleu import sentence_bleu
from dora_jax.metrics.measurement import PAPER, Measurement, percent_means
from dora_jax.metrics.text import normalise, require_same_length

BETA = 4.0
DEFAULT_SCORER_MODEL = "microsoft/deberta-xlarge-mnli"
_PAPER_OFFSET = 1e-5


def measure_paraphrases(
    targets: Sequence[str],
    predictions: Sequence[str],
    sources: Sequence[str],
    *,
    scorer_model: str = DEFAULT_SCORER_MODEL,
) -> Measurement:
    """BERT-iBLEU and its halves, each the mean over sentences.

    Args:
        targets: gold paraphrases; only the paper's way of counting reads them.
        predictions: paraphrases, in the same order.
        sources: the sentences that were paraphrased.
        scorer_model: the encoder of BERTScore; see `bert_score`.

    Returns:
        A measurement with `bert_ibleu`, `bert_score` and `self_bleu`; where the encoder cannot
        be had `self_bleu` alone, and a remark that says why.

    Raises:
        ValueError: lists of different lengths, no examples, or an empty source.
    """
    require_same_length(targets, predictions, sources)
    empty = [i for i, source in enumerate(sources) if not source.strip()]
    if empty:
        raise ValueError(
            f"The source of example {empty[0]} is empty; BERT-iBLEU compares each prediction "
            "with its source, so every example needs one."
        )
    halves = {
        "self_bleu": _self_bleu(sources, predictions),
        f"{PAPER}self_bleu": _paper_self_bleu(targets, predictions),
    }
    remarks: tuple[str, ...] = ()
    notes: dict[str, int | float] = {"empty_predictions": sum(not p.strip() for p in predictions)}
    try:
        scored, layer = _bert_scores(targets, predictions, sources, scorer_model)
    except ScorerMissing as missing:
        remarks = (f"BERT-iBLEU was not computed, only its self-BLEU half: {missing}",)
        primary = "self_bleu"
    else:
        halves |= scored
        notes["scorer_layer"] = layer
        primary = "bert_ibleu"
        for family in ("", PAPER):
            halves[f"{family}bert_ibleu"] = bert_ibleu(
                halves[f"{family}bert_score"], halves[f"{family}self_bleu"]
            )
    columns = [*halves.values(), np.ones(len(targets))]
    return Measurement(
        np.stack(columns, axis=1), percent_means(tuple(halves)), primary, notes, remarks=remarks
    )


def bert_ibleu(bert_score_N: np.ndarray, self_bleu_N: np.ndarray) -> np.ndarray:
    """((β / BERTScore + 1 / (1 - self-BLEU)) / (β + 1))⁻¹ of each sentence; 0 where a half is 0.

    Args:
        bert_score_N: float [sentences], 0 to 1.
        self_bleu_N: float [sentences], 0 to 1.
    """
    changed_N = 1.0 - self_bleu_N
    below_N = BETA * changed_N + bert_score_N
    above_N = (BETA + 1.0) * bert_score_N * changed_N
    return np.divide(above_N, below_N, out=np.zeros_like(above_N), where=below_N != 0.0)


def _self_bleu(sources: Sequence[str], predictions: Sequence[str]) -> np.ndarray:
    pairs = zip(predictions, sources, strict=True)
    return np.array([sentence_bleu(normalise(p), normalise(s), smoothed=True) for p, s in pairs])


def _paper_self_bleu(targets: Sequence[str], predictions: Sequence[str]) -> np.ndarray:
    pairs = zip(_paper_predictions(predictions), targets, strict=True)
    plain = [sentence_bleu(p, t.strip(), smoothed=False) for p, t in pairs]
    return np.array(plain) + _PAPER_OFFSET


def _paper_predictions(predictions: Sequence[str]) -> list[str]:
    return [p.strip() or "no prediction" for p in predictions]


def _bert_scores(
    targets: Sequence[str], predictions: Sequence[str], sources: Sequence[str], scorer_model: str
) -> tuple[dict[str, np.ndarray], int]:
    """Both families' BERTScore of each sentence, and the encoder's layer."""
    of_paper = _paper_predictions(predictions)
    paper_N, layer = bert_score(of_paper, targets, scorer_model)
    if list(sources) == list(targets):  # so in the authors' test file; no second hour on a CPU
        strict_N = paper_N
    else:
        strict_N, _ = bert_score(of_paper, sources, scorer_model)
    predicted_N = np.array([bool(p.strip()) for p in predictions])
    return {
        "bert_score": np.where(predicted_N, strict_N, 0.0).clip(0.0, 1.0),
        f"{PAPER}bert_score": paper_N + _PAPER_OFFSET,
    }, layer
