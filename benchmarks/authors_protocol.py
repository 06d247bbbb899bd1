"""The protocol of Kang, Xu and Ritter (ACL 2023), with today's transformers: the reference.

The teacher generates greedily, once for each text. In every update of every epoch it runs again,
for its whole logits; the student's loss is the KL at temperature 2, times its square, over rows
padded to the longest of the batch, padding included. Source: the authors' public script.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from dora_jax.checkpoints import names, placement
from dora_jax.config import T5Config
from dora_jax.shapes import EOS_ID, PAD_ID, Examples

TEMPERATURE = 2.0


def untrained_torch_model(network: T5Config, device: str, dropout: float) -> Any:
    """The same network in transformers, with random weights."""
    gated = len(network.mlp_activations) > 1
    config = transformers.T5Config.from_dict(
        {
            "vocab_size": network.vocab_size,
            "d_model": network.emb_dim,
            "d_kv": network.head_dim,
            "d_ff": network.mlp_dim,
            "num_layers": network.num_encoder_layers,
            "num_decoder_layers": network.num_decoder_layers,
            "num_heads": network.num_heads,
            "dropout_rate": dropout,
            "feed_forward_proj": "gated-gelu" if gated else "relu",
            "tie_word_embeddings": network.logits_via_embedding,
            "decoder_start_token_id": PAD_ID,
        }
    )
    torch.set_default_dtype(getattr(torch, network.dtype))  # never larger than it will be
    with torch.device(device):
        model = transformers.T5ForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    if not network.logits_via_embedding:  # transformers 5 ties the head for any flag
        head = torch.empty_like(model.lm_head.weight)
        model.lm_head.weight = torch.nn.Parameter(head.normal_(std=network.emb_dim**-0.5))
    return model


def torch_model(network: T5Config, params: Any, device: str, dropout: float) -> Any:
    """The same network in transformers, with the same weights."""
    model = untrained_torch_model(network, device, dropout)
    targets = dict(model.named_parameters(remove_duplicate=False))
    leaves = {
        ".".join(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(params)
    }
    with torch.no_grad():
        for path, sources in names.sources(placement.shapes(network)).items():
            for source in sources:
                leaf = leaves[path] if source.layer is None else leaves[path][source.layer]
                tensor = torch.from_dlpack(jnp.asarray(leaf, jnp.float32))
                transposed = names.is_transposed(path) and tensor.ndim == 2
                targets[source.name].copy_(tensor.T if transposed else tensor)
                if device == "cuda":  # before JAX takes the array's memory for the next one
                    torch.cuda.synchronize()
    return model


class EndAt(transformers.LogitsProcessor):
    """Rules EOS out before a row's length, and everything else there."""

    def __init__(self, lengths_B: torch.Tensor) -> None:
        self.lengths_B = lengths_B

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        place = input_ids.shape[1]  # of the token to come, from 1: the start token stands first
        ending_B = self.lengths_B == place
        scores[:, EOS_ID] = -torch.inf
        scores[ending_B] = -torch.inf
        scores[ending_B, EOS_ID] = 0.0
        return scores


class AuthorsProtocol:
    """Cached generations, a teacher that runs in every update, and the student.

    Args:
      teacher, student: in transformers, on `device`.
      examples: whose sources are the texts.
    """

    def __init__(
        self,
        teacher: Any,
        student: Any,
        examples: Examples,
        device: str,
        learning_rate: float,
    ) -> None:
        self.teacher, self.student = teacher.eval(), student.train()
        self.examples = examples
        self.device = device
        # The fused kernel is torch's fastest.
        self.optimizer = torch.optim.AdamW(
            student.parameters(), lr=learning_rate, weight_decay=0.0, fused=True
        )
        self.generated: dict[int, np.ndarray] = {}  # example → tokens
        self.seconds: dict[str, list[float]] = {}

    def generate(
        self, indices: Sequence[int], max_tokens: int, end_at_N: np.ndarray | None = None
    ) -> None:
        """Greedy answers to some texts, into the cache; EOS forced where `end_at_N` is given."""
        processors = transformers.LogitsProcessorList()
        if end_at_N is not None:
            ends_B = torch.from_numpy(np.asarray(end_at_N)[list(indices)]).to(self.device)
            processors.append(EndAt(ends_B))

        def work() -> np.ndarray:
            with torch.inference_mode():
                tokens = self.teacher.generate(
                    **self._sources(indices),
                    max_new_tokens=max_tokens,
                    do_sample=False,
                    num_beams=1,
                    logits_processor=processors,
                )
            return tokens[:, 1:].cpu().numpy()

        for i, row in zip(indices, self._timed("generate", work), strict=True):
            ends = np.flatnonzero(row == EOS_ID)
            self.generated[i] = row[: ends[0] + 1] if len(ends) else row

    def update(self, indices: Sequence[int]) -> float:
        """One update on cached answers. Returns the loss."""
        rows = [torch.from_numpy(self.generated[i]) for i in indices]
        labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).long().to(self.device)
        # Not `labels`: transformers would compute a cross-entropy that nobody asked for.
        batch = {
            **self._sources(indices),
            "decoder_input_ids": torch.nn.functional.pad(labels[:, :-1], (1, 0), value=PAD_ID),
        }
        teacher_logits = self._timed("teacher forward", lambda: self._teacher_forward(batch))
        return self._timed("student update", lambda: self._student_update(batch, teacher_logits))

    def _teacher_forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return self.teacher(**batch).logits

    def _student_update(self, batch: dict[str, torch.Tensor], teacher_logits: Any) -> float:
        logits = self.student(**batch).logits
        vocab = logits.shape[-1]
        loss = TEMPERATURE**2 * torch.nn.KLDivLoss(reduction="batchmean")(
            torch.nn.functional.log_softmax(logits.view(-1, vocab) / TEMPERATURE, dim=-1),
            torch.nn.functional.softmax(teacher_logits.view(-1, vocab) / TEMPERATURE, dim=-1),
        )
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _sources(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        rows = [torch.from_numpy(np.array(self.examples.source(i))) for i in indices]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).long().to(self.device)
        return {"input_ids": tokens, "attention_mask": (tokens != PAD_ID).long()}

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.seconds.setdefault(name, []).append(time.perf_counter() - began)
        return result


def matmul_flops_per_second(device: str) -> float:
    """Of torch's float32 products, the best of a few."""
    one, other = torch.randn(2048, 768, device=device), torch.randn(768, 8192, device=device)
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        torch.mm(one, other)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * 2048 * 768 * 8192 / min(seconds)
