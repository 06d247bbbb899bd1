"""The TFDS builders, really built: the rows of `load_splits`, in parts that many hosts can read."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds

from dora_jax.config import DataConfig
from dora_jax.data.vocab import train_sentencepiece
from dora_jax.tasks.seqio_registry import native_stderr_held_back, register_tfds, seqio
from dora_jax.tasks.sources import load_splits
from dora_jax.tasks.task import TaskSpec, get_task
from dora_jax.tasks.tfds import building

NAMES = ("fever", "multipit_gen", "multipit_id", "nq", "stanceosaurus", "wlp")
LENGTHS = {"inputs": 32, "targets": 16}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the authors' layout, of rows of the bundled samples."""
    root = tmp_path_factory.mktemp("published")
    for name in NAMES:
        task = get_task(name)
        sample = load_splits(task, DataConfig(task=name, num_labels=120, num_test=15)).rows
        for split, published_as in (("train", "train"), ("test", task.test_split)):
            rows = ({"source": row.source, "target": row.target} for row in sample[split])
            path = root / task.folder / f"{task.folder}_{published_as}_all.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("vocabulary") / "tiny.model"
    train_sentencepiece(["any text will do", "since bytes are pieces"], path, 285)
    return str(path)


def config(name: str, published: Path, **settings: Any) -> DataConfig:
    given = {"task": name, "data_dir": str(published), "num_labels": 30, **settings}
    return DataConfig(**given)


def examples(task: seqio.Task, split: str, shard: seqio.ShardInfo | None = None) -> list[dict]:
    with native_stderr_held_back():
        dataset = task.get_dataset(LENGTHS, split, shuffle=False, shard_info=shard)
        return list(dataset.as_numpy_iterator())


def pairs(found: list[dict]) -> list[tuple[str, str]]:
    return [(e["source"].decode(), e["targets_pretokenized"].decode()) for e in found]


@pytest.mark.parametrize(("name", "seed"), [*((name, -1) for name in NAMES), ("nq", 3)])
def test_the_dataset_has_the_rows_of_load_splits_in_their_order(
    name: str, seed: int, published: Path, tfds_dir: Path, vocabulary: str
) -> None:
    task, data = get_task(name), config(name, published, labels_seed=seed)
    built = register_tfds(task, data, vocabulary, tfds_dir)
    assert isinstance(built.source, seqio.TfdsDataSource)
    assert seqio.get_mixture_or_task(name) is built
    rows = load_splits(task, data).rows
    found = {split: examples(built, split) for split in built.splits}
    for split in ("train", "validation", "test"):
        assert pairs(found[split]) == [(row.source, row.target) for row in rows[split]]
        assert built.num_input_examples(split) == len(rows[split]) > 0
    unlabeled = {source for source, _ in pairs(found["unlabeled"])}
    assert unlabeled >= {row.source for row in rows["unlabeled"]}
    prompt = found["train"][0]["inputs_pretokenized"].decode()
    assert prompt == task.prompt_prefix + rows["train"][0].source


def test_slices_are_nested(published: Path, tfds_dir: Path) -> None:
    builder: Any = building.build(get_task("nq"), config("nq", published), tfds_dir)

    def sources(split: str) -> list[bytes]:
        return [row["source"] for row in builder.as_dataset(split=split).as_numpy_iterator()]

    everything = sources("train")
    assert sources("train[:25]") == everything[:25]
    assert sources("train[:10]") == everything[:10]
    assert sources("train[25:]") == everything[25:]


def test_tfds_alone_builds_it_as_docs_data_says(published: Path, tmp_path: Path) -> None:
    importlib.import_module("dora_jax.tasks.tfds.fever")
    download = tfds.download.DownloadConfig(manual_dir=str(published))
    loaded: Any = tfds.load(
        "dora_fever/seed_4",
        split="train[:7]",
        data_dir=str(tmp_path),
        download=True,
        download_and_prepare_kwargs={"download_config": download},
    )
    data = config("fever", published, labels_seed=4, num_labels=7)
    wanted = [row.source for row in load_splits(get_task("fever"), data).rows["train"]]
    assert [row["source"].decode() for row in loaded.as_numpy_iterator()] == wanted


def test_many_hosts_read_every_row_once(published: Path, tfds_dir: Path, vocabulary: str) -> None:
    built = register_tfds(get_task("wlp"), config("wlp", published), vocabulary, tfds_dir)
    whole = pairs(examples(built, "train"))
    parts = [pairs(examples(built, "train", seqio.ShardInfo(i, 3))) for i in range(3)]
    assert [len(part) for part in parts] == [10, 10, 10]
    assert sorted(sum(parts, [])) == sorted(whole)


def test_all_labels_leave_no_unlabelled_split(
    published: Path, tfds_dir: Path, vocabulary: str
) -> None:
    data = config("nq", published, num_labels=-1, num_test=4)
    built = register_tfds(get_task("nq"), data, vocabulary, tfds_dir)
    assert set(built.splits) == {"train", "validation", "test"}
    assert len(examples(built, "test")) == 4
    provenance = load_splits(get_task("nq"), data).provenance
    assert built.num_input_examples("train") == provenance["labelled_rows_available"]


def test_every_task_has_a_builder_of_its_name() -> None:
    for name in NAMES:
        module = importlib.import_module(f"dora_jax.tasks.tfds.{name}")
        assert module.BUILDER.name == f"dora_{name}"
        assert get_task(name).folder in module.BUILDER.MANUAL_DOWNLOAD_INSTRUCTIONS
    beside = {path.stem for path in Path(building.__file__).parent.glob("*.py")}
    assert beside == {*NAMES, "building", "__init__"}


def test_a_dataset_of_other_files_is_refused(published: Path, tmp_path: Path) -> None:
    task: TaskSpec = get_task("nq")
    building.build(task, config("nq", published), tmp_path / "tfds")
    other = tmp_path / "other" / "nq"
    other.mkdir(parents=True)
    for file in (published / "nq").iterdir():
        (other / file.name).write_text(file.read_text() + "\n")
    with pytest.raises(ValueError, match="was built from other files .* Remove that folder"):
        building.build(task, config("nq", tmp_path / "other"), tmp_path / "tfds")


def test_bad_rows_build_nothing(published: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "fever"
    folder.mkdir(parents=True)
    for file in (published / "fever").iterdir():
        (folder / file.name).write_text(file.read_text() + '{"source": "a", "target": "MAYBE"}\n')
    with pytest.raises(ValueError, match="the label 'MAYBE' is not known"):
        building.build(get_task("fever"), config("fever", tmp_path / "data"), tmp_path / "tfds")
    assert not list((tmp_path / "tfds").rglob("dataset_info.json"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data_dir": ""}, "read the authors' files.*DORA_DATA_DIR"),
        ({"validation_share": 0.1}, "cut 5% of train off for validation, not validation_share"),
        ({"labels_seed": 99}, "-1 .of the file. and 0 to 9, not labels_seed = 99"),
    ],
)
def test_settings_a_builder_does_not_know_are_refused(
    settings: dict, message: str, published: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        building.build(get_task("nq"), config("nq", published, **settings), tmp_path)
