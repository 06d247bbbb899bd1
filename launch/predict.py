"""Predicts a file of texts with a checkpoint."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # before a file of this folder could shadow what is imported
    runpy.run_path(str(Path(__file__).resolve().with_name("as_script.py")))

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dora_jax.launch import gin_config
from dora_jax.launch.command_line import (
    EXIT_INTERRUPTED,
    default_compilation_cache,
    exit_status,
    parse,
    set_up_jax,
)
from dora_jax.launch.gin_config import Override
from dora_jax.launch.prediction_files import InputRows, Predictions, read_inputs
from dora_jax.tasks.own import task_of
from dora_jax.tasks.task import TaskSpec, get_task

if TYPE_CHECKING:  # JAX takes seconds to import; wrong flags and bad rows are told before
    import numpy as np

    from dora_jax.data.vocab import Vocabulary
    from dora_jax.predict import Decoding
    from dora_jax.shapes import Examples
    from dora_jax.stages.weights import Checkpoint, DecodingDefaults

CHUNK_BATCHES = 16  # decoded between two writes: what a kill can lose, and what is sorted by length
DESCRIPTION = """\
Predicts a file of texts. --inputs holds JSON lines with a text "source", and --outputs becomes
the same rows in the same order, each with its "prediction"; launch/score.py reads it.

  python launch/predict.py --checkpoint=runs/one/distill --task=wlp \\
      --inputs=texts.jsonl --outputs=predictions.jsonl
  python launch/predict.py --checkpoint=hf:google/flan-t5-small --task=fever --num_beams=4 …
  python launch/predict.py --checkpoint=t5x:DIR/checkpoint_1000 --vocabulary=spiece.model …
  python launch/predict.py --checkpoint=runs/mine/distill --gin_file=runs/mine/config.gin …

After an interruption the same command goes on behind the rows that are done. Rows are decoded in
batches of like length, so order the file as you please.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, 2 after an error, 75 if interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _predict(given), debug="--debug" in given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python launch/predict.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        metavar="NAME",
        help="a trained stage of a run, hf:NAME, t5x:DIR, native:DIR",
    )
    add("--task", help="wlp, fever, stanceosaurus, multipit_id, multipit_gen or nq: its prompt")
    add("--gin_file", metavar="FILE", help="in place of --task: the run file of a task of your own")
    add("--inputs", metavar="FILE", help="JSON lines with a text under source")
    add("--outputs", metavar="FILE", help="where the predictions go; must not exist yet")
    add("--on_bad_row", default="error", choices=("error", "skip"), help="default: %(default)s")
    add("--vocabulary", metavar="FILE", help="SentencePiece file (default: the checkpoint's)")
    add("--extra_ids", type=int, help="sentinels after its pieces (default: the checkpoint's)")
    add("--source_length", type=int, help="tokens; longer sources are cut (the run's, 512)")
    add("--target_length", type=int, help="tokens; no prediction is longer (the run's, 128)")
    add("--batch_size", type=int, default=64, help="rows decoded together (default: %(default)s)")
    add(
        "--num_beams", type=int, default=1, help="beam search with so many; 1: greedy (the default)"
    )
    add(
        "--length_penalty",
        type=float,
        default=1.0,
        help="of beam search: above 0 favours long texts",
    )
    add(
        "--early_stopping",
        default="heuristic",
        choices=("heuristic", "full", "exhaustive"),
        help="of beam search: when a text is done, see docs/decoding.md (default: %(default)s)",
    )
    add("--sample", action="store_true", help="draw tokens by chance")
    add("--temperature", type=float, default=1.0, help="of --sample (default: %(default)s)")
    add("--top_k", type=int, default=0, help="of --sample: only the k likeliest tokens; 0: all")
    add("--top_p", type=float, default=1.0, help="of --sample: only the likeliest of total mass p")
    add("--seed", type=int, default=0, help="of --sample")
    add(
        "--no_repeat_ngram_size",
        type=int,
        help="greedy: no n tokens come twice; 0: they may (default: as the run decoded, 0)",
    )
    add("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16, but float32 on a CPU")
    add("--fsdp", type=int, default=1, help="devices that share the parameters; -1: all")
    add("--tensor", type=int, default=1, help="devices that share each matrix product")
    add(
        "--compilation_cache",
        metavar="DIR",
        default=str(default_compilation_cache()),
        help="where compiled programs are kept; empty for nowhere (default: %(default)s)",
    )
    add("--debug", action="store_true", help="show tracebacks")
    return parser


def _predict(arguments: list[str]) -> int:
    flags, overrides = parse(_parser(), arguments)
    task = _task(flags, overrides)
    for name in ("checkpoint", "inputs", "outputs"):
        if not getattr(flags, name):
            raise ValueError(f"Name --{name}=…; see --help.")
    for name in ("source_length", "target_length", "batch_size", "num_beams"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name}={value}; it must be 1 or more.")
    inputs = read_inputs(Path(flags.inputs), flags.on_bad_row == "skip")
    for line in inputs.bad:
        print(f"left out: {line}", file=sys.stderr)
    set_up_jax(flags.compilation_cache)
    try:
        _carry_out(flags, task, inputs)
    except KeyboardInterrupt:
        print(
            "\nStopped; the rows that are done are kept. The same command goes on.", file=sys.stderr
        )
        return EXIT_INTERRUPTED
    return 0


def _task(flags: argparse.Namespace, overrides: list[Override]) -> TaskSpec:
    if (flags.task is None) == (flags.gin_file is None):
        raise ValueError("Name the task: --task=NAME, or --gin_file=FILE for one of your own.")
    if flags.gin_file is None:
        if overrides:
            raise ValueError(
                f"--gin.{overrides[0].name} needs the run file it changes: --gin_file."
            )
        return get_task(flags.task)
    # The scale sets sizes and lengths; which task it is does not depend on it.
    config = gin_config.build(flags.gin_file, "rehearsal", overrides, check_use=False).config
    return task_of(config.data, config.cost.price_usd_per_label)


def _decoding(flags: argparse.Namespace) -> Decoding:
    from dora_jax.model.beam import BeamSearch
    from dora_jax.model.sampling import Sampling

    if flags.sample + (flags.num_beams > 1) + bool(flags.no_repeat_ngram_size) > 1:
        raise ValueError(
            "--sample, --num_beams and --no_repeat_ngram_size are three ways to decode; choose one."
        )
    if flags.sample:
        return Sampling(flags.temperature, flags.top_k, flags.top_p)
    if flags.num_beams > 1:
        return BeamSearch(flags.num_beams, flags.length_penalty, flags.early_stopping)
    return None


def _take_over(flags: argparse.Namespace, defaults: DecodingDefaults) -> None:
    """What no flag says is as the run of the checkpoint has it."""
    greedy = not flags.sample and flags.num_beams == 1
    for name, value in dataclasses.asdict(defaults).items():
        if getattr(flags, name) is None:
            setattr(flags, name, value if greedy or name != "no_repeat_ngram_size" else 0)


def _carry_out(flags: argparse.Namespace, task: TaskSpec, inputs: InputRows) -> None:
    import jax
    import numpy as np

    from dora_jax import predict
    from dora_jax.config import CHECKPOINTS
    from dora_jax.parallel.mesh import make_mesh
    from dora_jax.stages import weights

    decoding = _decoding(flags)
    named = flags.checkpoint.partition(":")[0] in CHECKPOINTS
    checkpoint = weights.find(flags.checkpoint if named else f"native:{flags.checkpoint}")
    _take_over(flags, checkpoint.decoding)
    vocabulary = _vocabulary(flags, checkpoint)
    dtype = flags.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    settings = _settings(flags, task, inputs, checkpoint, vocabulary, decoding, dtype)
    examples = _tokens(task, inputs.rows, vocabulary, flags.source_length)
    mesh = make_mesh(fsdp=flags.fsdp, tensor=flags.tensor)
    with Predictions(Path(flags.outputs), settings) as outputs:
        network, params = checkpoint.read(mesh, None)
        vocabulary.check_size(network.vocab_size)
        decode = functools.partial(
            predict.decode,
            dataclasses.replace(network, dtype=dtype),
            params,
            batch_size=flags.batch_size,
            source_length=int(np.diff(examples.source_offsets).max()),
            target_length=flags.target_length,
            mesh=mesh,
            decoding=decoding,
            no_repeat_ngram_size=flags.no_repeat_ngram_size,
            seed=flags.seed,
        )
        _fill(outputs, inputs.rows, examples, decode, vocabulary, CHUNK_BATCHES * flags.batch_size)
    print(f"{len(inputs.rows):,} predictions in {flags.outputs}")


def _fill(
    outputs: Predictions,
    rows: Sequence[dict[str, Any]],
    examples: Examples,
    decode: Callable[..., list[np.ndarray]],
    vocabulary: Vocabulary,
    chunk: int,
) -> None:
    """Decodes and writes what is not done yet, `chunk` rows at a time."""
    from tqdm import tqdm

    with tqdm(
        total=len(rows), initial=outputs.done, desc="predict", unit="row", disable=None
    ) as bar:
        for start in range(outputs.done, len(rows), chunk):
            stop = min(start + chunk, len(rows))
            predictions = decode(_slice(examples, start, stop), first_row_id=start, bar=bar)
            texts = [vocabulary.decode(tokens.tolist()) for tokens in predictions]
            outputs.append(rows[start:stop], texts)
    outputs.finish()


def _vocabulary(flags: argparse.Namespace, checkpoint: Checkpoint) -> Vocabulary:
    from dora_jax.checkpoints import tokenizer_files

    extra_ids = checkpoint.extra_ids if flags.extra_ids is None else flags.extra_ids
    vocabulary = tokenizer_files.chosen(flags.vocabulary, checkpoint.vocabulary, extra_ids)
    if vocabulary is None:
        raise ValueError(
            f"{flags.checkpoint} comes without a vocabulary; name its SentencePiece file with "
            "--vocabulary=FILE, or --vocabulary=hf:google/t5-v1_1-small for T5's own."
        )
    return vocabulary


def _settings(
    flags: argparse.Namespace,
    task: TaskSpec,
    inputs: InputRows,
    checkpoint: Checkpoint,
    vocabulary: Vocabulary,
    decoding: Decoding,
    dtype: str,
) -> dict[str, Any]:
    """What decides a prediction; batch size and devices do not."""
    return {
        "inputs": inputs.sha256,
        "rows": len(inputs.rows),
        "checkpoint": checkpoint.where,
        "checkpoint_files": _stamp(checkpoint.where),
        "prompt": task.prompt_prefix,
        "vocabulary": vocabulary.fingerprint,
        "source_length": flags.source_length,
        "target_length": flags.target_length,
        "decoding": "greedy" if decoding is None else str(decoding),
        "no_repeat_ngram_size": flags.no_repeat_ngram_size,
        "seed": flags.seed if flags.sample else None,
        "dtype": dtype,
    }


def _stamp(folder: str) -> str:
    """Changes when a file of the checkpoint does: names, sizes, times. Hashing takes minutes."""
    from dora_jax.fingerprints import fingerprint

    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    stats = [(str(path.relative_to(folder)), path.stat()) for path in files]
    return fingerprint([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])


def _tokens(
    task: TaskSpec, rows: Sequence[dict[str, Any]], vocabulary: Vocabulary, limit: int
) -> Examples:
    """The sources as the model reads them, without targets."""
    from dora_jax.data.token_store import concatenate
    from dora_jax.shapes import EOS_ID, Examples

    full = vocabulary.encode([f"{task.prompt_prefix}{row['source']}" for row in rows])
    cut = sum(len(tokens) >= limit for tokens in full)
    if cut:
        longest = max(map(len, full)) + 1
        print(
            f"cut to {limit} tokens: {cut:,} of {len(rows):,} sources, the longest of {longest:,}; "
            "--source_length sets it",
            file=sys.stderr,
        )
    sources = [[*tokens[: limit - 1], EOS_ID] for tokens in full]
    nothing = concatenate([[]] * len(rows))
    return Examples(*concatenate(sources), *nothing)


def _slice(examples: Examples, start: int, stop: int) -> Examples:
    from dora_jax.shapes import Examples

    offsets = examples.source_offsets[start : stop + 1]
    return Examples(
        examples.source_tokens[offsets[0] : offsets[-1]],
        offsets - offsets[0],
        examples.target_tokens[:0],
        examples.target_offsets[: stop - start + 1],
    )


if __name__ == "__main__":
    sys.exit(main())
