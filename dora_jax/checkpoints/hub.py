"""From "hf:..." to a local folder: a folder as it is, a repository of the hub downloaded once."""

from __future__ import annotations

import re
from pathlib import Path

_FILES = (
    "config.json, spiece.model and model.safetensors (or pytorch_model.bin, or the numbered "
    "files of either and their .index.json)"
)

_HUB_TIMEOUT_S = 5.0


def resolve(spec: str, weights: bool = True) -> Path:
    """The local folder of "hf:FOLDER" or "hf:org/name"; the latter is downloaded once.

    Only the settings, the vocabulary and one format of the weights are fetched; the last not
    without `weights`. Where a folder of that name exists, it is taken and not the hub's.

    Raises:
      ValueError: no such folder, no such repository, or the hub cannot be reached and has
        not been before; says which files to put where.
    """
    name = spec.removeprefix("hf:")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return _download(name, weights)
    raise ValueError(
        f"{spec}: there is no folder {folder}. Expected a folder with {_FILES}; or a name of "
        "the hub, like hf:google/t5-v1_1-small."
    )


def _download(repo: str, weights: bool) -> Path:
    # Imported here because it takes a quarter of a second that local folders need not pay.
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    def fetch(*files: str) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                repo, allow_patterns=list(files), etag_timeout=_HUB_TIMEOUT_S
            )
        )

    try:
        # tokenizer_config.json tells how many sentinels there are: mT5 has none.
        folder = fetch("config.json", "spiece.model", "tokenizer_config.json")
        if weights:
            fetch("model*.safetensors", "model.safetensors.index.json")
        if weights and not any(folder.glob("model*.safetensors")):
            fetch("pytorch_model*.bin", "pytorch_model.bin.index.json")
    except HfHubHTTPError as error:
        raise ValueError(
            f"hf:{repo}: the hub refuses it ({error}). Check the name; a private or gated "
            "repository needs `hf auth login`."
        ) from error
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"hf:{repo}: the hub cannot be reached, and the repository is not in this machine's "
            f"cache. Where there is a network, download {_FILES} from "
            f"https://huggingface.co/{repo}/tree/main; put them into one folder on this machine "
            "and name it with hf:/path/of/the/folder."
        ) from error
    return folder
