"""Greedy decoding, and forward + backward, against `transformers`, in one run.

    python benchmarks/decode.py                     # about 40 minutes on 2 CPU cores
    python benchmarks/decode.py --sentences=64 --repeats=1       # a look
    python benchmarks/decode.py --dtype=bfloat16 --json=decode.json   # both sides in bfloat16

T5-Small v1.1 (77 M parameters, 32,128 ids) with random weights. Both sides decode the same WLP
test sentences (`DORA_DATA_DIR`, else the bundled sample, and the output says which), 64 forced new
tokens each, in batches of like length, at batch 32 and at each side's own best batch. Then both
take gradients of the same training batches of 32 examples: `transformers` pads to the longest
row; we do too ("unpacked"), and we pack. The sides take turns, so that a change of the machine's
speed meets both; the figures are medians over the turns. On an NVIDIA GPU, where torch and JAX
both see it, both run there, in bfloat16. Needs the `test` extra (torch, transformers).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import transformers
from train_step import (
    BATCH,
    DROPOUT,
    MAX_TOKENS,
    padded,
    torch_t5_small,
    wlp_examples,
)

from dora_jax.config import T5Config, TrainConfig
from dora_jax.data.loader import (
    EvaluationBatch,
    LabelledSource,
    PackedLoader,
    balanced_row_lengths,
    evaluation_batches,
)
from dora_jax.data.packing import Placement, fill
from dora_jax.launch.command_line import keep_freed_memory
from dora_jax.model.decode import greedy_decode
from dora_jax.model.decoder_step import prepare
from dora_jax.parallel.mesh import make_mesh
from dora_jax.shapes import EOS_ID, Examples, Seq2SeqBatch
from dora_jax.train.step import init_params, make_loss_fn

NEW_TOKENS = 64
BATCHES = (8, 16, 32, 64, 128)
PROBED = 128  # sentences by which each side chooses its batch
WIDTH = 8  # our unpacked rows are padded to a multiple of it, which saves compilations


Side = Callable[[int], float]  # turn → amount of work done


def contest(title: str, unit: str, sides: dict[str, Side], repeats: int) -> dict[str, Any]:
    """Lets the sides take turns; prints and returns medians, with ratios taken turn by turn.

    The last side is the one that the others are compared with.
    """
    for side in sides.values():
        side(0)  # all shapes are compiled, all buffers allocated
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name, side in sides.items():
            began = time.perf_counter()
            amount = side(turn)
            rates[name].append(amount / (time.perf_counter() - began))
    theirs = list(rates.values())[-1]
    figures = {}
    print(f"\n{title}", flush=True)
    for name, own in rates.items():
        ratios = [a / b for a, b in zip(own, theirs, strict=True)]
        median, ratio = statistics.median(own), statistics.median(ratios)
        figures[name] = {"rate": median, "ratio": ratio, "min_max": [min(ratios), max(ratios)]}
        print(
            f"  {name:28} {median:9,.0f} {unit}  {ratio:5.2f} x transformers "
            f"({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )
    return {"title": title, "unit": unit, "sides": figures}


class Machine(NamedTuple):
    """Where and in what type both sides compute."""

    torch_device: str
    dtype: str

    def torch_model(self, dropout: float) -> transformers.T5ForConditionalGeneration:
        model = torch_t5_small(dropout)
        torch.nn.Module.to(model, device=self.torch_device, dtype=getattr(torch, self.dtype))
        return model

    def network(self) -> T5Config:
        return T5Config(num_heads=6, scan_unroll=8, dtype=self.dtype)

    def wait(self) -> None:
        if self.torch_device == "cuda":
            torch.cuda.synchronize()


def new_tokens(batches: Sequence[EvaluationBatch]) -> int:
    """Decoded for sentences; what rows that fill the last batch decode is no work done."""
    return NEW_TOKENS * sum(int((batch.indices_B >= 0).sum()) for batch in batches)


def our_decoding(machine: Machine, params: Any, batches: Sequence[EvaluationBatch]) -> Side:
    network = machine.network()
    params = prepare(network, params)

    def decode(_: int) -> float:
        for batch in batches:
            tokens_BT = np.asarray(
                greedy_decode(network, params, batch.encoder_tokens_BS, NEW_TOKENS, NEW_TOKENS)
            )
            assert tokens_BT.shape[1] == NEW_TOKENS and (tokens_BT != EOS_ID).all()
        return new_tokens(batches)

    return decode


def their_decoding(machine: Machine, model: Any, batches: Sequence[EvaluationBatch]) -> Side:
    def decode(_: int) -> float:
        for batch in batches:
            used = int((batch.encoder_tokens_BS != 0).sum(1).max())
            tokens_BS = torch.from_numpy(batch.encoder_tokens_BS[:, :used]).long()
            tokens_BS = tokens_BS.to(machine.torch_device)
            with torch.inference_mode():
                tokens_BT = model.generate(
                    input_ids=tokens_BS,
                    attention_mask=(tokens_BS != 0).long(),
                    min_new_tokens=NEW_TOKENS,
                    max_new_tokens=NEW_TOKENS,
                    do_sample=False,
                    num_beams=1,
                )
            assert tokens_BT.cpu().shape[1] == NEW_TOKENS + 1
        return new_tokens(batches)

    return decode


def decoding(
    machine: Machine, examples: Examples, params: Any, repeats: int, sizes: Sequence[int]
) -> list[dict]:
    """At batch 32, and each side at the one of these batches that suits it best."""
    length = int(np.diff(examples.source_offsets).max())
    probe = range(0, len(examples), max(1, len(examples) // PROBED))
    model = machine.torch_model(0.0).eval()

    def sides(size: int, indices: Sequence[int] | None) -> tuple[Side, Side]:
        batches = list(evaluation_batches(examples, size, length, indices))
        return our_decoding(machine, params, batches), their_decoding(machine, model, batches)

    def fastest(name: str, which: int) -> int:
        """The best batch of one side."""
        seconds = {}
        for size in sizes:
            side = sides(size, probe)[which]
            side(0)
            began = time.perf_counter()
            side(0)
            seconds[size] = time.perf_counter() - began
        rates = {size: f"{len(probe) * NEW_TOKENS / s:,.0f}" for size, s in seconds.items()}
        print(f"{name}, {len(probe)} sentences, tokens/s by batch: {rates}", flush=True)
        return min(seconds, key=lambda size: seconds[size])

    best = (32, 32)
    if len(sizes) > 1:
        best = fastest("dora_jax", 0), fastest("transformers", 1)
    results = []
    for ours, theirs in dict.fromkeys([(32, 32), best]):
        compared = {
            f"dora_jax, batch {ours}": sides(ours, None)[0],
            f"transformers, batch {theirs}": sides(theirs, None)[1],
        }
        title = f"Greedy decoding, {len(examples)} sentences, {machine.dtype}"
        results.append(contest(title, "new tokens/s", compared, repeats))
    return results


def one_example_a_row(loader: PackedLoader, step: int) -> Seq2SeqBatch:
    """The update's examples without packing, padded to the longest in steps of WIDTH."""
    examples = loader.examples(step)
    rows = np.arange(len(examples))
    placement = Placement(rows, np.ones_like(rows), 0 * rows, 0 * rows, len(rows))
    source_length, target_length = (
        -(-max(len(getattr(example, side)) for example in examples) // WIDTH) * WIDTH
        for side in ("source", "target")
    )
    return fill(examples, placement, len(rows), source_length, target_length)


def gradients(
    machine: Machine, examples: Examples, params: Any, updates: int, repeats: int
) -> dict:
    """Forward and backward of the same batches, per token that is no padding."""
    source = LabelledSource(examples)
    source_length, target_length = balanced_row_lengths(source, MAX_TOKENS, MAX_TOKENS)
    loader = PackedLoader(
        source,
        batch_size=BATCH,
        source_length=source_length,
        target_length=target_length,
        seed=0,
    )
    loss_fn = make_loss_fn(machine.network(), TrainConfig(dropout_rate=DROPOUT))
    gradient = jax.jit(jax.grad(loss_fn, has_aux=True))
    model = machine.torch_model(DROPOUT).train()
    tokens = sum(loader.batch(step).tokens for step in range(updates))

    def ours(batches: Sequence[Seq2SeqBatch]) -> Side:
        def run(turn: int) -> float:
            for step, batch in enumerate(batches):
                jax.block_until_ready(gradient(params, batch, jax.random.key(step)))
            return tokens

        return run

    their_batches = [padded(loader.examples(step)) for step in range(updates)]

    def theirs(_: int) -> float:
        for batch in their_batches:
            loss = model(**{k: v.to(machine.torch_device) for k, v in batch.items()}).loss
            loss.backward()
            model.zero_grad(set_to_none=True)
        machine.wait()
        return tokens

    return contest(
        f"Forward + backward, {updates} batches of {BATCH} examples, {machine.dtype}",
        "non-padding tokens/s",
        {
            "dora_jax, packed": ours([loader.batch(step).batch for step in range(updates)]),
            "dora_jax, unpacked": ours([one_example_a_row(loader, s) for s in range(updates)]),
            "transformers": theirs,
        },
        repeats,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sentences", type=int, default=512, help="how many are decoded")
    parser.add_argument("--repeats", type=int, default=3, help="timed turns of each side")
    parser.add_argument("--updates", type=int, default=8, help="batches of a turn of gradients")
    parser.add_argument("--pieces", type=int, default=4000, help="pieces of the vocabulary")
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=BATCHES,
        help="from which each side chooses its best beside 32; one: only 32 is compared",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of both sides")
    parser.add_argument("--only", choices=("decoding", "gradients"), help="one half")
    parser.add_argument("--json", default="", help="file for the figures")
    args = parser.parse_args()

    keep_freed_memory()  # as a run does; it serves both sides
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.utils.logging.set_verbosity_error()
    gpu = torch.cuda.is_available() and jax.default_backend() == "gpu"
    dtype = args.dtype or ("bfloat16" if gpu else "float32")
    machine = Machine("cuda" if gpu else "cpu", dtype)
    params = init_params(machine.network(), 0, make_mesh(devices=jax.devices()[:1]))
    test, origin = wlp_examples(args.pieces, "test")
    print(f"WLP from {origin}; {jax.devices()[0].device_kind}, {dtype}", flush=True)
    results = []
    if args.only != "gradients":
        results += decoding(
            machine, first(test, args.sentences), params, args.repeats, sorted(args.batches)
        )
    if args.only != "decoding":
        train, _ = wlp_examples(args.pieces)
        results.append(gradients(machine, train, params, args.updates, args.repeats))
    if args.json:
        content = {"origin": origin, "arguments": vars(args), "results": results}
        Path(args.json).write_text(json.dumps(content, indent=1) + "\n")


def first(examples: Examples, count: int) -> Examples:
    """The first so many of a split."""
    return Examples(
        examples.source_tokens,
        examples.source_offsets[: count + 1],
        examples.target_tokens,
        examples.target_offsets[: count + 1],
    )


if __name__ == "__main__":
    main()
