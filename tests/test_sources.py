"""From files to splits: what goes where, and what is said about bad input."""

import json
import os
from pathlib import Path

import pytest

from dora_jax.config import DataConfig
from dora_jax.tasks.sources import load_splits, read_rows
from dora_jax.tasks.task import get_task

WLP = get_task("wlp")


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


# Rows


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"source": "a", "target": ', r"broken JSON \(.* at column \d+"),
        (b'["a", "b"]', "expected an object with 'source' and 'target', found list"),
        (b"7", "found int"),
        (b'{"source": "a", "label": "b"}', "'target' is missing; found source, label"),
        (b"{}", "'source' is missing; found none"),
        (b'{"source": "a", "target": null}', "'target' must be text, found NoneType None"),
        (b'{"source": ["a"], "target": ""}', "'source' must be text, found list"),
        (b'{"source": " ", "target": ""}', "'source' is empty"),
        (b'{"source": "\xff", "target": ""}', "not UTF-8"),
        (b'{"source": "\\ud800", "target": ""}', "half a surrogate pair at character 0"),
        (b'{"source": "a", "target": "a", "n": ' + b"1" * 5000 + b"}", "broken JSON"),
        (b"[" * 100_000, "broken JSON"),
        (b'{"source": "Mix", "target": "Mix [Actoin]"}', "Actoin"),
    ],
)
def test_bad_row_is_named_or_skipped_and_counted(tmp_path, line, message):
    path = tmp_path / "rows.json"
    good = b'{"source": "Mix", "target": "Mix [Action]"}\n'
    path.write_bytes(good + b"\n" + line + b"\n" + good)
    with pytest.raises(ValueError, match=rf"rows\.json:3: .*{message}") as caught:
        read_rows(path, "error", check_target=WLP.check_target)
    assert "on_bad_row = 'skip'" in str(caught.value)
    read = read_rows(path, "skip", check_target=WLP.check_target)
    assert [row.location for row in read.rows] == [f"{path}:1", f"{path}:4"]
    assert len(read.skipped) == 1
    assert "rows.json:3" in read.skipped[0]


def test_empty_target_and_odd_separators_are_legal(tmp_path):
    path = tmp_path / "rows.json"
    row = {"source": "a\u2028b\x85c", "target": ""}
    path.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")  # no newline at the end
    [read] = read_rows(path, "error", check_target=WLP.check_target).rows
    assert (read.source, read.target) == ("a\u2028b\x85c", "")


def test_unlabelled_rows_need_no_target(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"source": "a"}\n{"source": "b", "target": 7}\n')
    assert [r.target for r in read_rows(path, "error", required=("source",)).rows] == ["", ""]


def test_unreadable_files_say_what_to_set(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.json cannot be read.*DORA_DATA_DIR"):
        read_rows(tmp_path / "nowhere.json", "skip")
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory\)"):
        read_rows(tmp_path, "skip")
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
    assert [message for message in after["skipped_rows"] if "wlp_train_all.json:301" in message]
    assert after["source_files"]["train"]["skipped"] == 1
    assert after["rows"] == before["rows"]
    assert after["data_fingerprint"] != before["data_fingerprint"]


# The bundled sample and the published files


def test_bundled_sample_keeps_its_own_splits():
    rows, provenance = load_splits(WLP, DataConfig(num_labels=300))
    assert provenance["origin"] == "bundled sample"
    assert provenance["skipped_rows"] == []
    assert len(rows["train"]) == 300
    rest = provenance["labelled_rows_available"] - 300
    assert len(rows["unlabeled"]) + provenance["unlabeled_duplicates_dropped"] == (
        provenance["source_files"]["unlabeled"]["rows"] + rest
    )
    assert min(len(rows["validation"]), len(rows["test"])) >= 100
    assert {row.target for row in rows["unlabeled"]} == {""}


@pytest.mark.skipif(
    not os.environ.get("DORA_DATA_DIR"),
    reason="DORA_DATA_DIR is not set: the published WLP files were not tested.",
)
def test_published_files_load_as_they_are():
    rows, provenance = load_splits(WLP, DataConfig(data_dir=os.environ["DORA_DATA_DIR"]))
    assert provenance["skipped_rows"] == []
    assert provenance["source_files"]["train"]["rows"] == 14_271
    assert len(rows["train"]) == 1000
    assert len(rows["test"]) == 3562
    labelled_sources = {row.source for row in rows["train"]}
    distinct = labelled_sources | {r.source for s in ("unlabeled", "validation") for r in rows[s]}
    assert len(distinct) == 9958
    assert 0.03 < len(rows["validation"]) / 14_271 < 0.07
    empty = [row for split in ("train", "validation") for row in rows[split] if not row.target]
    assert empty
