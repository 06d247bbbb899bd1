"""From "hf:..." to a folder: what is fetched, and what is said where nothing can be."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants  # not loaded with the package
import huggingface_hub.errors
import pytest

from dora_jax.checkpoints import hub


def test_offline_the_error_says_which_files_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError) as error:
        hub.resolve("hf:google/t5-v1_1-xxl")
    message = str(error.value)
    for part in (
        "config.json, spiece.model and model.safetensors",
        "https://huggingface.co/google/t5-v1_1-xxl/tree/main",
        "hf:/path/of/the/folder",
    ):
        assert part in message


def test_a_name_that_is_neither_folder_nor_repository(tmp_path: Path) -> None:
    assert hub.resolve(f"hf:{tmp_path}") == tmp_path
    with pytest.raises(ValueError, match="there is no folder /nowhere/at/all"):
        hub.resolve("hf:/nowhere/at/all")


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_only_the_needed_files_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    on_the_hub = ["config.json", "spiece.model", "README.md", "flax_model.msgpack", weights]
    on_the_hub += ["tf_model.h5", "onnx/model.safetensors", "tokenizer_config.json"]
    if weights == "model.safetensors":
        on_the_hub.append("pytorch_model.bin")

    def snapshot_download(repo: str, *, allow_patterns: list[str], **_: Any) -> str:
        assert repo == "google/t5-v1_1-small"
        for file in on_the_hub:
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hub.resolve("hf:google/t5-v1_1-small", weights=False) == tmp_path
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "spiece.model",
        "tokenizer_config.json",
    ]
    assert hub.resolve("hf:google/t5-v1_1-small") == tmp_path
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["config.json", weights, "spiece.model", "tokenizer_config.json"]


def test_a_repository_that_the_hub_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(huggingface_hub.errors.RepositoryNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "401")

    def refuse(*_: Any, **__: Any) -> str:
        raise Refused

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ValueError, match=r"hub refuses it \(401\).*hf auth login"):
        hub.resolve("hf:google/no-such-model")
