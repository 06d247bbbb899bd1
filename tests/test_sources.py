"""From files to splits: what goes where, and what is said about bad input."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from dora_jax.config import DataConfig, OwnTaskConfig
from dora_jax.tasks.sources import load_splits, read_pools
from dora_jax.tasks.task import TaskSpec, get_task

NAMES = ("fever", "multipit_gen", "multipit_id", "nq", "stanceosaurus", "wlp")
TASKS = [get_task(name) for name in NAMES]
WLP = get_task("wlp")
PUBLISHED = os.environ.get("DORA_DATA_DIR", "")


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path) -> Path:
    """300 train rows, many of which repeat a source near by or far off, and 20 test rows."""
    train = [
        {
            "source": f"Mix tube {(i - i % 3 // 2) % 200}.",
            "target": "" if i % 10 == 0 else "Mix [Action]",
        }
        for i in range(300)
    ]
    test = [{"source": f"Spin tube {i}.", "target": "Spin [Action]"} for i in range(19)]
    write_lines(tmp_path / "wlp" / "wlp_train_all.json", train)
    write_lines(tmp_path / "wlp" / "wlp_test_all.json", [*test, train[0]])
    return tmp_path


def config(folder: Path, **settings) -> DataConfig:
    return DataConfig(
        data_dir=str(folder), **{"num_labels": 50, "validation_share": 0.2} | settings
    )


def lines_of(folder: Path, rows) -> list[int]:
    return [int(row.location.rpartition(":")[2]) for row in rows]


# Folders


def test_missing_files_and_folders_say_what_to_set(tmp_path, folder):
    (folder / "wlp" / "wlp_test_all.json").unlink()
    with pytest.raises(ValueError, match=r"wlp_test_all\.json cannot be read.*DORA_DATA_DIR"):
        load_splits(WLP, config(folder))
    (tmp_path / "wlp").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"no folder .*wlp.*wlp_train_all\.json.*DORA_DATA_DIR"):
        load_splits(WLP, DataConfig(data_dir=str(tmp_path)))


# Splits of the authors' layout


def test_labels_are_the_first_rows_and_splits_do_not_mix(folder):
    rows, provenance = load_splits(WLP, config(folder))
    labelled = lines_of(folder, rows["train"])
    validation = lines_of(folder, rows["validation"])
    assert len(labelled) == 50
    assert labelled == [n for n in range(1, 301) if n not in validation][:50]
    assert 0.1 < len(validation) / 300 < 0.3
    sources = {split: {row.source for row in members} for split, members in rows.items()}
    assert not sources["train"] & sources["unlabeled"]
    assert not sources["validation"] & (sources["train"] | sources["unlabeled"])
    assert len(rows["unlabeled"]) == len(sources["unlabeled"])
    assert {row.target for row in rows["unlabeled"]} == {""}
    everything = {f"Mix tube {(i - i % 3 // 2) % 200}." for i in range(300)}
    assert sources["train"] | sources["unlabeled"] | sources["validation"] == everything
    rest = 300 - len(validation) - 50
    assert provenance["unlabeled_duplicates_dropped"] == rest - len(rows["unlabeled"])
    assert provenance["labelled_sources_repeated"] == 50 - len(sources["train"])
    assert provenance["rows"] == {split: len(members) for split, members in rows.items()}
    assert provenance["test_rows_also_in_train_or_unlabeled"] == len(
        sources["test"] & (sources["train"] | sources["unlabeled"])
    )


def test_drawn_labels_are_nested_and_follow_the_seed(folder):
    def labelled(count, seed):
        return [
            row.location
            for row in load_splits(WLP, config(folder, num_labels=count, labels_seed=seed)).rows[
                "train"
            ]
        ]

    assert labelled(100, 3)[:20] == labelled(20, 3)
    assert labelled(20, 3) != labelled(20, 4)
    assert labelled(20, 3) != labelled(20, -1)


def test_validation_and_test_do_not_depend_on_the_labels(folder):
    first = load_splits(WLP, config(folder)).rows
    second = load_splits(WLP, config(folder, num_labels=10, labels_seed=5)).rows
    assert first["validation"] == second["validation"]
    assert first["test"] == second["test"]


def test_counts_cap_their_split(folder):
    rows = load_splits(WLP, config(folder, num_unlabeled=7, num_validation=3, num_test=0)).rows
    assert [len(rows[split]) for split in ("train", "unlabeled", "validation", "test")] == [
        50, 7, 3, 0
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"num_test = -2; it must be 0 or more, or -1"):
        load_splits(WLP, config(folder, num_test=-2))


def test_minus_one_buys_every_label(folder):
    rows, provenance = load_splits(WLP, config(folder, num_labels=-1))
    assert len(rows["train"]) == provenance["labelled_rows_available"]
    assert not rows["unlabeled"]


def test_more_labels_than_rows_says_how_many_there_are(folder):
    available = load_splits(WLP, config(folder)).provenance["labelled_rows_available"]
    with pytest.raises(ValueError, match=rf"num_labels = 5000, but there are {available} "):
        load_splits(WLP, config(folder, num_labels=5000))


def test_a_split_that_comes_out_empty_is_an_error(folder):
    with pytest.raises(ValueError, match="no validation rows.*validation_share"):
        load_splits(WLP, config(folder, validation_share=1e-9))
    (folder / "wlp" / "wlp_test_all.json").write_text("")
    with pytest.raises(ValueError, match="no test rows"):
        load_splits(WLP, config(folder))


def test_skipped_rows_and_fingerprints_are_recorded(folder):
    before = load_splits(WLP, config(folder)).provenance
    path = folder / "wlp" / "wlp_train_all.json"
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(ValueError, match=r"wlp_train_all\.json:301: broken JSON"):
        load_splits(WLP, config(folder))
    after = load_splits(WLP, config(folder, on_bad_row="skip")).provenance
    [skipped] = after["skipped_rows"]
    assert "wlp_train_all.json:301: broken JSON" in skipped
    assert after["skipped_summary"] == [skipped]
    assert after["source_files"]["train"]["skipped"] == 1
    assert after["rows"] == before["rows"]
    assert after["data_fingerprint"] != before["data_fingerprint"]


def write_table(path: Path, lines: list[str]) -> str:
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_unlabelled_text_is_in_no_other_split_that_trains_or_selects(tmp_path):
    """Where a file of unlabelled text is given, it may hold anything."""
    for split, count in {"train": 6, "validation": 3, "test": 2}.items():
        rows = [f"{split} {i},Action" for i in range(count)]
        write_table(tmp_path / f"{split}.csv", ["source,target", *rows])
    texts = ["train 0", "train 5", "validation 1", "test 1", "new", "new"]
    own = OwnTaskConfig(
        train_file=f"{tmp_path}/train.csv",
        test_file=f"{tmp_path}/test.csv",
        validation_file=f"{tmp_path}/validation.csv",
        unlabeled_file=write_table(tmp_path / "texts.csv", ["source", *texts]),
    )
    task = dataclasses.replace(WLP, check_target=lambda target: None)
    loaded = load_splits(task, DataConfig(own=own, num_labels=4))
    assert [row.source for row in loaded.rows["train"]] == [f"train {i}" for i in range(4)]
    assert [row.source for row in loaded.rows["validation"]] == [
        f"validation {i}" for i in range(3)
    ]
    assert [row.source for row in loaded.rows["unlabeled"]] == [
        "train 4",
        "train 5",
        "test 1",
        "new",
    ]
    assert loaded.provenance["test_rows_also_in_train_or_unlabeled"] == 1
    assert loaded.provenance["test_rows_also_in_train"] == 0


def test_leaks_are_counted_by_where_the_text_was_seen(folder):
    test = [{"source": f"Mix tube {i}.", "target": "Mix [Action]"} for i in range(200)]
    write_lines(folder / "wlp" / "wlp_test_all.json", test)
    rows, provenance = load_splits(WLP, config(folder))
    train = {row.source for row in rows["train"]}
    assert provenance["test_rows_also_in_train"] == len(train) > 0
    unlabeled = {row.source for row in rows["unlabeled"]}
    assert provenance["test_rows_also_in_train_or_unlabeled"] == len(train | unlabeled)
    assert provenance["validation_rows_also_in_train"] == 0


# Every task, from its bundled sample and from the published files


def assert_labels_are_nested(task: TaskSpec, data_dir: str) -> None:
    def labelled(count: int, seed: int) -> list[str]:
        data = DataConfig(
            task=task.name, data_dir=data_dir, num_labels=count, labels_seed=seed, num_unlabeled=0
        )
        return [row.location for row in load_splits(task, data).rows["train"]]

    in_file_order, drawn = labelled(200, -1), labelled(200, 7)
    assert labelled(60, -1) == in_file_order[:60]
    assert labelled(60, 7) == drawn[:60]
    assert drawn != labelled(200, 8) != in_file_order != drawn


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_bundled_sample_keeps_its_own_splits(task):
    rows, provenance = load_splits(task, DataConfig(task=task.name, num_labels=200))
    assert provenance["origin"] == "bundled sample"
    assert provenance["skipped_rows"] == []
    assert len(rows["train"]) == 200
    rest = provenance["labelled_rows_available"] - 200
    assert len(rows["unlabeled"]) + provenance["unlabeled_duplicates_dropped"] == (
        provenance["source_files"]["unlabeled"]["rows"] + rest
    )
    assert min(len(rows["validation"]), len(rows["test"])) >= 90
    assert {row.target for row in rows["unlabeled"]} == {""}
    counts = provenance["label_counts"]
    assert bool(counts) == (task.kind == "classification")
    if counts:
        assert tuple(counts["test"]) == task.labels
        assert sum(counts["test"].values()) == len(rows["test"])


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_labels_of_the_sample_are_nested(task):
    assert_labels_are_nested(task, "")


PUBLISHED_ROWS = {
    "fever": (7306, 2095),
    "multipit_gen": (4277, 1210),
    "multipit_id": (8138, 2270),
    "nq": (1987, 567),
    "stanceosaurus": (3319, 959),
    "wlp": (14271, 3562),
}


@pytest.mark.skipif(
    not PUBLISHED, reason="DORA_DATA_DIR is not set: the published files were not tested."
)
@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_published_files_load_as_they_are(task):
    data = DataConfig(task=task.name, data_dir=PUBLISHED)
    pools = read_pools(task, data)
    assert not any(file.skipped for file in pools.files.values())
    assert (len(pools.files["train"].rows), len(pools.test)) == PUBLISHED_ROWS[task.name]
    assert 0.03 < len(pools.validation) / len(pools.files["train"].rows) < 0.07
    rows = load_splits(task, data).rows
    assert len(rows["train"]) == 1000
    assert not {r.source for r in rows["unlabeled"]} & {r.source for r in rows["validation"]}


@pytest.mark.skipif(
    not PUBLISHED, reason="DORA_DATA_DIR is not set: the published WLP files were not tested."
)
def test_what_is_peculiar_to_the_published_wlp_files():
    rows = load_splits(WLP, DataConfig(data_dir=PUBLISHED)).rows
    labelled_sources = {row.source for row in rows["train"]}
    distinct = labelled_sources | {r.source for s in ("unlabeled", "validation") for r in rows[s]}
    assert len(distinct) == 9958
    assert [row for split in ("train", "validation") for row in rows[split] if not row.target]
