"""Small random T5s of `transformers`, for the tests that compare with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference T5 needs torch (extra [test])")
pytest.importorskip("transformers", reason="the reference T5 needs transformers (extra [test])")

import torch  # noqa: E402
import transformers  # noqa: E402

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

_SIZE = {
    "vocab_size": 48,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 20,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
_VERSIONS = {
    "v1.0": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


def make_model(version: str, seed: int = 0, **size: int) -> transformers.T5ForConditionalGeneration:
    """A T5 with random weights everywhere: norms and position tables too. v1.1 is untied."""
    torch.manual_seed(seed)
    config = transformers.T5Config(**{**_SIZE, **_VERSIONS[version], **size})
    model = transformers.T5ForConditionalGeneration(config).eval()
    if version == "v1.1":
        untie(model)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
            if "relative_attention_bias" in name:
                tensor.add_(torch.randn_like(tensor))
    return model


def untie(model: transformers.T5ForConditionalGeneration) -> None:
    """Gives a model a head of its own, which transformers 5 does not for any flag."""
    shape = model.lm_head.weight.shape
    model.lm_head.weight = torch.nn.Parameter(torch.randn(shape) * shape[1] ** -0.5)


def save_model(model: transformers.T5ForConditionalGeneration, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def logits_of(
    model: transformers.T5ForConditionalGeneration,
    encoder_tokens_BS: np.ndarray,
    decoder_inputs_BT: np.ndarray,
) -> torch.Tensor:
    """float32 [B, T, V], with gradients; id 0 is masked in the source."""
    tokens = torch.from_numpy(encoder_tokens_BS).long()
    return model(
        input_ids=tokens,
        attention_mask=(tokens != 0).long(),
        decoder_input_ids=torch.from_numpy(decoder_inputs_BT).long(),
    ).logits


def generate(
    model: transformers.T5ForConditionalGeneration,
    encoder_tokens_BS: np.ndarray,
    max_length: int,
    **settings: object,
) -> np.ndarray:
    """int32 [B, max_length]: no start token, zeros after EOS.

    transformers fills what a beam search leaves behind EOS with EOS where the padding id is 0.
    """
    tokens = torch.from_numpy(encoder_tokens_BS).long()
    generated_BT = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
        input_ids=tokens,
        attention_mask=(tokens != 0).long(),
        max_new_tokens=max_length,
        do_sample=False,
        **settings,
    ).numpy()[:, 1:]
    is_eos_BT = generated_BT == 1
    generated_BT = np.where(np.cumsum(is_eos_BT, axis=1) - is_eos_BT > 0, 0, generated_BT)
    missing = max_length - generated_BT.shape[1]
    return np.pad(generated_BT, ((0, 0), (0, missing))).astype(np.int32)


def random_rows(
    seed: int, batch: int, source_length: int, target_length: int, vocab_size: int = 48
) -> tuple[np.ndarray, np.ndarray]:
    """Encoder tokens with padding of several lengths, and decoder inputs that start with 0."""
    rng = np.random.default_rng(seed)
    tokens_BS = rng.integers(2, vocab_size, (batch, source_length)).astype(np.int32)
    for row in range(1, batch):
        tokens_BS[row, max(1, source_length - row * source_length // batch) :] = 0
    inputs_BT = rng.integers(2, vocab_size, (batch, target_length)).astype(np.int32)
    inputs_BT[:, 0] = 0
    return tokens_BS, inputs_BT


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest magnitude; 0 where both are 0 everywhere."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    difference = float(np.max(np.abs(actual - expected)))
    return difference and difference / float(np.max(np.abs(expected)))
