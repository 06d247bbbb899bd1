"""Converts a checkpoint: Hugging Face, T5X and native, from each to each."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # before a file of this folder could shadow what is imported
    runpy.run_path(str(Path(__file__).resolve().with_name("as_script.py")))

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from dora_jax.launch.command_line import exit_status, parse, set_up_jax

if TYPE_CHECKING:  # JAX takes seconds to import; wrong flags are told before
    from dora_jax.data.vocab import Vocabulary
    from dora_jax.stages.weights import Checkpoint

DESCRIPTION = """\
Converts a checkpoint. Source and target are written KIND:FOLDER. The kinds:

  hf      a folder that `transformers` reads; as a source also a name of the hub, hf:org/name
  t5x     a checkpoint_N of T5X, either of its forms, as a source also in gs://
  native  a folder with network.json; as a source also a stage of a run, native:RUN/distill

  python launch/convert.py --source=hf:google/t5-v1_1-small --target=t5x:t5_small/checkpoint_0
  python launch/convert.py --source=t5x:gs://t5-data/…/t5_1_1_small/checkpoint_1000000 \\
      --target=hf:t5_1_1_small --vocabulary=hf:google/t5-v1_1-small
  python launch/convert.py --source=native:runs/wlp_distill-paper/distill --target=hf:student

Works on the host's CPU and in its memory: 4 bytes a parameter, and some GB.
docs/checkpoints.md says what each kind keeps and what it loses.
"""
T5X_FORMS = ("orbax", "msgpack")


class Target(NamedTuple):
    """Where to write, and as what."""

    kind: str
    folder: str


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 after an error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _convert(given), debug="--debug" in given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python launch/convert.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--source", metavar="KIND:FOLDER", help="what is read")
    parser.add_argument("--target", metavar="KIND:FOLDER", help="what is written")
    parser.add_argument(
        "--vocabulary",
        metavar="FILE",
        help="SentencePiece file, or hf:org/name; default: the one that comes with the source",
    )
    parser.add_argument(
        "--extra_ids", type=int, help="sentinels after its pieces (default: the source's, else 100)"
    )
    parser.add_argument(
        "--t5x_form",
        default="orbax",
        choices=T5X_FORMS,
        help="orbax, what T5X writes today, or msgpack, its older one (default: %(default)s)",
    )
    parser.add_argument(
        "--t5x_scanned",
        action="store_true",
        help="write the tree of scalable_t5, not that of the published checkpoints",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _convert(arguments: list[str]) -> int:
    flags, overrides = parse(_parser(), arguments)
    if overrides:
        raise ValueError("--gin settings are for runs; this program has flags only, see --help.")
    if flags.source is None or flags.target is None:
        raise ValueError("Name both --source=KIND:FOLDER and --target=KIND:FOLDER; see --help.")
    target = _target(flags.target)
    _use_host_only()
    from dora_jax.checkpoints import tokenizer_files
    from dora_jax.checkpoints.whole_folder import refuse_other_content
    from dora_jax.stages import weights

    refuse_other_content(target.folder, _replaceable(target, flags.t5x_form))
    source = weights.find(flags.source)
    extra_ids = source.extra_ids if flags.extra_ids is None else flags.extra_ids
    # A wrong one is told before the weights are read.
    vocabulary = tokenizer_files.chosen(flags.vocabulary, source.vocabulary, extra_ids)
    if target.kind == "hf" and vocabulary is None:
        raise ValueError(
            f"{flags.source} comes without a vocabulary, which {flags.target} needs. Name its "
            "SentencePiece file: --vocabulary=FILE, or --vocabulary=hf:google/t5-v1_1-small for "
            "T5's own."
        )
    parameters = _write(flags, target, source, vocabulary)
    print(f"{flags.source} → {target.kind}:{target.folder}, {parameters:,} parameters")
    if target.kind == "t5x" and vocabulary is not None:
        print(f"T5X keeps no vocabulary with a checkpoint; it is {vocabulary.path}.")
    return 0


def _target(text: str) -> Target:
    kind, _, folder = text.partition(":")
    if kind not in ("hf", "t5x", "native") or not folder:
        raise ValueError(f"--target={text}: expected hf:FOLDER, t5x:FOLDER or native:FOLDER.")
    if kind == "t5x" and not Path(folder).name.startswith("checkpoint_"):
        folder = f"{folder.rstrip('/')}/checkpoint_0"  # T5X finds checkpoints by this name
    return Target(kind, folder)


def _replaceable(target: Target, t5x_form: str) -> Sequence[str]:
    """What may be in the target's folder already."""
    from dora_jax.checkpoints import huggingface, native_folder, t5x

    contents = {"hf": huggingface.CONTENT, "native": native_folder.CONTENT}
    return t5x.CONTENT[t5x_form] if target.kind == "t5x" else contents[target.kind]


def _use_host_only() -> None:
    set_up_jax(compilation_cache="")
    import jax

    jax.config.update("jax_platforms", "cpu")


def _write(
    flags: argparse.Namespace,
    target: Target,
    source: Checkpoint,
    vocabulary: Vocabulary | None,
) -> int:
    """Reads the source and writes the target. Returns the number of parameters."""
    from dora_jax.checkpoints import huggingface, native_folder, t5x
    from dora_jax.cost.flops import parameter_count

    network, params = source.read(None, None)
    file, extra_ids = None, source.extra_ids
    if vocabulary is not None:
        vocabulary.check_size(network.vocab_size)
        file, extra_ids = vocabulary.path, vocabulary.extra_ids
    if target.kind == "hf":
        assert file is not None
        huggingface.save(target.folder, network, params, file, extra_ids=extra_ids)
    elif target.kind == "t5x":
        layout = t5x.SCANNED if flags.t5x_scanned else t5x.UNSCANNED
        t5x.save(target.folder, params, layout=layout, form=flags.t5x_form)
    else:
        native_folder.save(target.folder, network, params, file, extra_ids)
    return parameter_count(network)


if __name__ == "__main__":
    sys.exit(main())
