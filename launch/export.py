"""Exports a model of a run for others to load, with a model card."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # before a file of this folder could shadow what is imported
    runpy.run_path(str(Path(__file__).resolve().with_name("as_script.py")))

import argparse
import os
import shutil
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dora_jax.config import LLM_STRATEGIES
from dora_jax.launch.command_line import exit_status, parse, set_up_jax

if TYPE_CHECKING:  # JAX takes seconds to import; wrong flags are told before
    from dora_jax.config import T5Config
    from dora_jax.data.token_store import TokenStore
    from dora_jax.launch.model_card import Facts, Latency
    from dora_jax.stages.weights import Checkpoint

DESCRIPTION = """\
Exports a model of a run directory: the weights, the vocabulary, and README.md, a model card with
metrics and their intervals, dollars, size, CPU latency measured here, provenance, and how to
load it.

  python launch/export.py --run=runs/wlp_distill-rehearsal --output=student
  python launch/export.py --run=runs/wlp_distill-paper --model=teacher --output=xxl --format=t5x

Afterwards, in Python:

  from transformers import AutoModelForSeq2SeqLM
  model = AutoModelForSeq2SeqLM.from_pretrained("student")
"""
# Model → its training stage.
STAGES = {"distill": "distill", "annotate": "annotate", "teacher": "teach"}
STAGES |= {name: name for name in LLM_STRATEGIES}
CARD = "README.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 after an error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _export(given), debug="--debug" in given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python launch/export.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", metavar="DIR", help="the run directory")
    parser.add_argument(
        "--model",
        choices=tuple(STAGES),
        help="the student of distill or annotate, or the teacher; default: the distilled student",
    )
    parser.add_argument("--output", metavar="DIR", help="the folder to write; it appears whole")
    parser.add_argument(
        "--format",
        default="hf",
        choices=("hf", "t5x"),
        help="for transformers, or for T5X (default: %(default)s)",
    )
    parser.add_argument(
        "--latency_texts",
        type=int,
        default=32,
        help="test texts to measure CPU latency on; 0: do not measure (default: %(default)s)",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _export(arguments: list[str]) -> int:
    flags, overrides = parse(_parser(), arguments)
    if overrides:
        raise ValueError("--gin settings are for runs; this program has flags only, see --help.")
    if flags.run is None or flags.output is None:
        raise ValueError("Name the run directory and where to write: --run=DIR --output=DIR.")
    run = Path(flags.run)
    if not (run / "config.json").is_file():
        raise ValueError(f"{run} is no run directory: it has no config.json.")
    set_up_jax(compilation_cache="")
    import jax

    jax.config.update("jax_platforms", "cpu")  # the card tells a CPU's latency
    from dora_jax.checkpoints.whole_folder import refuse_other_content
    from dora_jax.data.token_store import TokenStore
    from dora_jax.launch.model_card import model_card
    from dora_jax.stages import manifest, weights

    refuse_other_content(flags.output, _replaceable(flags.format))
    model = flags.model or _default_model(run)
    checkpoint = weights.trained(run, STAGES[model])
    if checkpoint.vocabulary is None:
        config = manifest.read_json(run / "config.json")
        place = config["data"]["token_store"] or run / "prepare" / "tokens"
        raise ValueError(f"The run's token store is not at {place}, so its vocabulary is missing.")
    store = TokenStore.open(checkpoint.vocabulary.parent)
    network, params = checkpoint.read(None, None)
    facts = _facts(run, model, network, params, store, flags.latency_texts)
    card = model_card(facts, flags.format)
    _write(flags.output, flags.format, network, params, checkpoint, card)
    print(f"{run / STAGES[model]} → {flags.output}; its {CARD} tells quality, dollars and loading")
    return 0


def _replaceable(form: str) -> Sequence[str]:
    """What may be in the output's folder already."""
    from dora_jax.checkpoints import huggingface

    return huggingface.CONTENT if form == "hf" else ("checkpoint_0", "spiece.model", CARD)


def _default_model(run: Path) -> str:
    from dora_jax.stages import manifest

    students = [
        m for m in ("distill", "annotate", *LLM_STRATEGIES) if manifest.is_finished(run / STAGES[m])
    ]
    return students[0] if students else "distill"  # whose absence the reader explains


def _write(
    output: str, form: str, network: T5Config, params: Any, checkpoint: Checkpoint, card: str
) -> None:
    from dora_jax.checkpoints import huggingface, t5x
    from dora_jax.checkpoints.whole_folder import written_whole

    assert checkpoint.vocabulary is not None
    if form == "hf":
        huggingface.save(
            output,
            network,
            params,
            checkpoint.vocabulary,
            extra_ids=checkpoint.extra_ids,
            documents={CARD: card},
        )
        return
    with written_whole(output, _replaceable(form)) as folder:
        t5x.save(folder / "checkpoint_0", params)
        shutil.copyfile(checkpoint.vocabulary, folder / "spiece.model")
        (folder / CARD).write_text(card, encoding="utf-8")


def _facts(
    run: Path, model: str, network: T5Config, params: Any, store: TokenStore, latency_texts: int
) -> Facts:
    from dora_jax import strategies
    from dora_jax.cost.flops import parameter_count
    from dora_jax.launch.model_card import Facts
    from dora_jax.metrics.scores import Scores
    from dora_jax.run_folders import read_folder
    from dora_jax.stages import manifest

    config = manifest.read_json(run / "config.json")
    made = manifest.read(run / STAGES[model])
    scored = run / f"evaluate-{model}"
    scores = None
    if manifest.is_finished(scored):
        scores = Scores.from_json(manifest.read(scored)["outputs"]["scores"])
    answers, latency = _decode(config, network, params, store, latency_texts)
    return Facts(
        model=model,
        run=run.resolve().name,
        config=config,
        network=network,
        scores=scores,
        rows=[row for row in read_folder(run).rows if row.stage in strategies.STAGES[model]],
        data=store.manifest,
        made_by=made["finished_by"],
        fingerprint=made["fingerprint"],
        weight_bytes=4 * parameter_count(network),
        latency=latency,
        example=_example(store, answers, config["data"]["source_length"]),
    )


def _decode(
    config: dict[str, Any], network: T5Config, params: Any, store: TokenStore, texts: int
) -> tuple[list[list[int]], Latency | None]:
    """The model's answers to the first test texts, one at a time, and how long they took."""
    import numpy as np

    import dora_jax
    from dora_jax.launch.model_card import Latency, no_repeat_ngram_size
    from dora_jax.model.decoder_step import prepare

    examples = store.examples("test")
    texts = min(texts, len(examples))
    no_repeats = no_repeat_ngram_size(config)
    prepared = prepare(network, params)
    answers, milliseconds = [], []
    for i in [0, *range(texts)]:  # the first time compiles
        tokens_BS = np.zeros((1, config["data"]["source_length"]), np.int32)
        tokens_BS[0, : len(examples.source(i))] = examples.source(i)
        began = time.perf_counter()
        decoded = dora_jax.greedy_decode(
            network,
            prepared,
            tokens_BS,
            config["data"]["target_length"],
            no_repeat_ngram_size=no_repeats,
        )
        answers.append(np.asarray(decoded)[0].tolist())
        milliseconds.append(1000 * (time.perf_counter() - began))
    if not texts:
        return answers, None
    del answers[0]
    median, p90 = np.percentile(milliseconds[1:], [50, 90])
    mean_tokens = float(np.mean([np.count_nonzero(answer) for answer in answers]))
    return answers, Latency(float(median), float(p90), texts, mean_tokens, _machine())


def _example(
    store: TokenStore, answers: list[list[int]], source_length: int
) -> tuple[str, str] | None:
    """A prompted source and its answer; bytes that are no text are shown in more than one way."""
    import numpy as np

    widths = np.diff(store.examples("test").source_offsets)
    for source, width, answer in zip(store.sources("test"), widths, answers, strict=False):
        text = store.vocabulary.decode(answer)
        # A source that fills the width may have been cut, and transformers does not cut it.
        if text and "\ufffd" not in text and width < source_length:
            return store.manifest["prompt_prefix"] + source, text
    return None


def _machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'unknown CPU'}, {os.cpu_count()} cores"


if __name__ == "__main__":
    sys.exit(main())
