"""gin files and names: what they resolve to, and that no wrong one passes unnoticed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from dora_jax.config import DataConfig, RunConfig, T5Config, fingerprint
from dora_jax.cost.flops import parameter_count
from dora_jax.launch import gin_config, run_files
from dora_jax.launch.gin_config import Override, build
from dora_jax.model.sizes import NETWORKS

RUN = "gin/wlp_distill.gin"


@pytest.fixture(autouse=True)
def _no_data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DORA_DATA_DIR", raising=False)


def overrides(**values: str) -> list[Override]:
    return [Override(name, value) for name, value in values.items()]


def config_of(*given: str, scale: str = "rehearsal", run: str | Path = RUN) -> RunConfig:
    pairs = [Override(*argument.split("=", 1)) for argument in given]
    return build(run, scale, pairs).config


def test_paper_scale_is_the_authors_protocol() -> None:
    config = config_of(scale="paper")
    assert parameter_count(config.teacher.network) == parameter_count(NETWORKS["t5_1_1_xxl"])
    assert parameter_count(config.student.network) == parameter_count(NETWORKS["t5_1_1_small"])
    assert (config.teacher.weights, config.student.weights) == (
        "hf:google/t5-v1_1-xxl",
        "hf:google/t5-v1_1-small",
    )
    for train in (config.teach, config.annotate, config.distill):
        assert train.batch_size == 32
        assert train.optimizer.schedule == "linear"
    for train in (config.annotate, config.distill):
        assert (train.optimizer.name, train.optimizer.learning_rate) == ("adamw", 3e-5)
    # The one deviation: AdamW's moments would double what the teacher's training holds.
    assert (config.teach.optimizer.name, config.teach.optimizer.learning_rate) == (
        "adafactor",
        1e-3,
    )
    assert config.teach.train_steps == 20 * 1000 // 32
    assert config.annotate.train_steps == -(-50 * 1000 // 32)
    assert config.distill.soft_loss.temperature == 2.0
    assert config.teacher.network.dtype == "bfloat16"
    assert config.scale == "paper"


@pytest.mark.parametrize("scale", run_files.SCALES)
@pytest.mark.parametrize("run", run_files.run_files())
def test_every_run_file_resolves_and_its_text_gives_the_same_config(
    run: str, scale: str, tmp_path: Path
) -> None:
    given = overrides(SEED="3", LEARNING_RATE="1e-4", MODEL_DIR="'runs/mine'")
    given.append(Override("teach/TrainConfig.z_loss", "1e-4"))
    resolved = build(run, scale, given)
    assert resolved.config.seed == 3
    assert resolved.config.teach.z_loss == 1e-4
    assert "DataConfig.extra_ids = 100" in resolved.text  # defaults too: they may change one day
    record = tmp_path / "config.gin"
    record.write_text(resolved.text, encoding="utf-8")
    assert gin_config.own_scale(record) == scale
    assert build(record, scale).config == resolved.config


def test_both_runs_train_their_student_alike() -> None:
    annotate = config_of(run="gin/wlp_annotate.gin")
    distill = config_of(run="gin/wlp_distill.gin")
    assert annotate.strategies == ("annotate",)
    assert (annotate.student, annotate.annotate) == (distill.student, distill.annotate)


@pytest.mark.parametrize("name", NETWORKS)
def test_model_files_are_the_networks_of_the_table(name: str) -> None:
    found = config_of(f"STUDENT=@{name}/T5Config()", "DTYPE='float32'", scale="paper")
    network = dataclasses.replace(found.student.network, remat_policy="none")
    assert network == NETWORKS[name]


def test_every_model_file_is_in_the_table_and_wired() -> None:
    assert {path.stem for path in (run_files.GIN_FOLDER / "models").iterdir()} == set(NETWORKS)


def test_help_explains_every_name_of_the_wiring() -> None:
    text = (run_files.GIN_FOLDER / "run.gin").read_text(encoding="utf-8")
    defined = re.findall(r"^([A-Z0-9_]+) =", text, re.MULTILINE)
    explained = run_files.settings()
    assert [setting.name for setting in explained] == defined
    assert all(len(setting.meaning) > 5 for setting in explained)
    assert len(set(defined)) == len(defined)


def test_help_lists_every_field_that_can_be_set() -> None:
    owners = gin_config.owners()
    assert "distill/TrainConfig" in owners["TrainConfig"]
    assert "t5_base/T5Config" in owners["T5Config"]
    assert owners["DataConfig"] == ["DataConfig"]
    assert "extra_ids" in gin_config.field_names("DataConfig")


def test_the_users_overrides_win_over_the_scale() -> None:
    assert config_of().data.num_labels != 77
    assert config_of("NUM_LABELS=77").data.num_labels == 77
    config = config_of("teach/TrainConfig.microbatches=4")
    assert (config.teach.microbatches, config.distill.microbatches) == (4, 1)
    config = config_of("TrainConfig.microbatches=2")
    assert (config.teach.microbatches, config.distill.microbatches) == (2, 2)


def test_a_network_of_ones_own() -> None:
    config = config_of("STUDENT=@mine/T5Config()", "mine/T5Config.emb_dim=32")
    assert config.student.network.emb_dim == 32
    assert config.student.network.vocab_size == config.teacher.network.vocab_size


def test_the_loss_temperature_is_always_stored() -> None:
    assert config_of("TEMPERATURE=3").label.temperatures == (1.0, 3.0)
    assert config_of("TEMPERATURE=1").label.temperatures == (1.0,)


def test_whole_numbers_for_fractions_change_no_fingerprint() -> None:
    assert fingerprint(config_of("TEMPERATURE=2")) == fingerprint(config_of("TEMPERATURE=2.0"))


def test_feature_lengths_reach_the_data() -> None:
    data = config_of("TASK_FEATURE_LENGTHS={'inputs': 7, 'targets': 9}").data
    assert (data.source_length, data.target_length) == (7, 9)


def test_the_estimator_decides_which_entries_labels_keep() -> None:
    assert config_of().label.drawn_at == 0.0
    assert config_of("TAIL='sample'", "TEMPERATURE=3").label.drawn_at == 3.0


def test_default_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    assert config_of().model_dir == "runs/wlp_distill-rehearsal"
    assert config_of(scale="paper").model_dir == "runs/wlp_distill-paper"
    assert config_of().data.data_dir == ""
    sample_labels = config_of().data.num_labels
    monkeypatch.setenv("DORA_DATA_DIR", "/corpora")
    assert config_of().data.data_dir == "/corpora"
    assert config_of("DATA_DIR='/other'").data.data_dir == "/other"
    assert config_of().data.num_labels == 1000 != sample_labels


def test_own_data_are_rehearsed_with_their_own_recipe() -> None:
    assert config_of("DATA_DIR='/corpora'").data.num_labels == 1000
    assert config_of("DATA_DIR='/corpora'", "NUM_LABELS=5").data.num_labels == 5


ERRORS = {
    "TRAIN_STEP=5": "--gin.TRAIN_STEP is no name of this run. Did you mean TRAIN_STEPS",
    "teech/TrainConfig.train_steps=5": "changes nothing.*Did you mean teach/TrainConfig.train_s",
    "TrainConfig.train_steps=5": "changes nothing.*Did you mean.*distill/TrainConfig.train_steps",
    "t5_1_1_xxl/T5Config.emb_dim=8": "changes nothing.*rehearsal_teacher/T5Config.emb_dim",
    "teach/TrainConfig.train_step=5": "no field 'train_step'. Did you mean train_steps",
    "teach/TranConfig.train_steps=5": "no 'TranConfig'. Did you mean TrainConfig",
    "TEACHER=@t5_1_1_smal/T5Config()": "no gin file. Did you mean @t5_1_1_small/T5Config",
    "TEACHER=@t5_1_1_small/T5Confg()": "no 'T5Confg'. Did you mean T5Config",
    "TEACHER=@t5_1_1_small/T5Config": "with parentheses.*--gin.TEACHER=",
    "SEED=%NOPE": "%NOPE is read, but nothing sets it",
    "MODEL_DIR=runs/x": re.escape("""--gin.MODEL_DIR="'runs/x'\""""),
    "MODEL_DIR='x": "two pairs of quotes",
    "SEED=(1,": "--gin.SEED=.* cannot be read",
    "SEED=": "cannot be read",
    "SEED=1 2": "cannot be read",
    "TRAIN_STEPS=-1": "must be greater than 0. Set it with --gin.TRAIN_STEPS=",
    "TEACHER_LEARNING_RATE=0": "OptimizerConfig.learning_rate.*--gin.TEACHER_LEARNING_RATE=",
    "teach/TrainConfig.z_loss='a'": "a number. Set it with --gin.teach/TrainConfig.z_loss=",
    "TRAIN_STEPS=1e3": "expected a whole number.*--gin.TRAIN_STEPS=",
    "TRAIN_STEPS=True": "expected a whole number",
    "TEMPERATURE='x'": "expected a number",
    "VOCABULARY=3": "expected a text in quotes",
    "STRATEGIES='distill'": r"expected a tuple such as \(.*--gin.STRATEGIES=",
    "STRATEGIES=('distil',)": "'distil' is not known; choose one of .*'annotate', 'distill'",
    "TASK_FEATURE_LENGTHS={'inputs': 3}": '"targets": 128',
    "SCALE='paper'": "--scale=",
}


@pytest.mark.parametrize("argument", ERRORS)
def test_wrong_overrides_are_refused_with_the_way_out(argument: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){ERRORS[argument]}") as caught:
        config_of(argument)
    assert "In call to configurable" not in str(caught.value)


def test_names_of_another_scale_pass_where_only_the_size_is_asked() -> None:
    given = [Override("rehearsal_teacher/T5Config.emb_dim", "64")]
    assert build(RUN, "rehearsal", given).config.teacher.network.emb_dim == 64
    with pytest.raises(ValueError, match="changes nothing"):
        build(RUN, "paper", given)
    build(RUN, "paper", given, check_use=False)
    with pytest.raises(ValueError, match="TRAIN_STEP is no name"):
        build(RUN, "paper", overrides(TRAIN_STEP="1"), check_use=False)


def test_unknown_scale() -> None:
    with pytest.raises(ValueError, match="no scale 'papr'; choose auto, rehearsal or paper"):
        build(RUN, "papr")


# --- Files of one's own


def own_file(folder: Path, text: str, name: str = "mine.gin") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_of_ones_own_includes_packaged_and_neighbouring_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_file(tmp_path, "NUM_TEST = 5\n", "small_test.gin")
    mine = own_file(tmp_path, 'include "wlp_distill.gin"\ninclude "small_test.gin"  # fewer\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    own_file(elsewhere, "NUM_TEST = 6\n", "run.gin")  # must not be taken for the wiring
    monkeypatch.chdir(elsewhere)
    config = config_of(run=mine)
    assert config.data.num_test == 5
    assert config.model_dir == "runs/mine-rehearsal"
    assert config_of(run="gin/wlp_distill.gin").data.num_test == -1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('include "wlp_distill.gin"\n\nTRAN_STEPS = 3\n', "TRAN_STEPS, set in .*TRAIN_STEPS"),
        ('include "wlp_distill.gin"\n\nSEED == 3\n', "mine.gin.*line 3"),
        (
            'include "wlp_distill.gin"\n\nTrainConfg.z_loss = 3\ninclude "tasks/wlp.gin"\n',
            '(?s)TrainConfig.*In file ".*mine.gin", line 3',
        ),
        ('include "wlp_distil.gin"\n', "line 1: there is no wlp_distil.gin.*wlp_distill.gin"),
        ('SEED = 1\ninclude "mine.gin"\n', "line 2: .*includes itself"),
        ("SEED = 1\n", 'begin it with: include "run.gin"'),
        (
            'include "run.gin"\nstudent/ModelSource.network = @nobody/T5Config()\n',
            "@nobody/T5Config.. is described by no gin file",
        ),
    ],
)
def test_mistakes_in_files_are_named_with_file_and_line(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(run=own_file(tmp_path, text))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.gin"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="mine.gin cannot be read"):
        config_of(run=path)


def test_a_missing_run_file_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="wlp_distil.gin. Did you mean gin/wlp_distill.gin"):
        build("gin/wlp_distil.gin", "paper")
    assert run_files.find_run_file("wlp_distill.gin") == run_files.find_run_file(RUN)


def test_a_file_that_sets_the_scale_is_taken_as_it_is(tmp_path: Path) -> None:
    text = 'include "wlp_distill.gin"\ninclude "scale/rehearsal.gin"\nNUM_LABELS = 7\n'
    mine = own_file(tmp_path, text)
    assert gin_config.own_scale(mine) == "rehearsal"
    assert gin_config.own_scale(RUN) is None
    assert config_of(run=mine).data.num_labels == 7
    with pytest.raises(ValueError, match="sets SCALE = 'rehearsal'"):
        config_of(run=mine, scale="paper")


def test_one_build_leaves_nothing_behind_for_the_next() -> None:
    before = config_of()
    config_of("NUM_LABELS=9", "teach/TrainConfig.z_loss=0.5")
    assert config_of() == before


def test_configs_stay_the_plain_classes() -> None:
    config = config_of()
    assert type(config) is RunConfig
    assert type(config.data) is DataConfig
    assert type(config.teacher.network) is T5Config


def test_the_gin_folder_is_no_package() -> None:
    assert not list(run_files.GIN_FOLDER.rglob("__init__.py"))


@pytest.mark.parametrize("path", sorted(run_files.GIN_FOLDER.rglob("*.gin")), ids=lambda p: p.name)
def test_every_gin_file_is_a_note_with_a_header(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
