"""What the programs share and no other test sees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dora_jax.launch import data, probe
from dora_jax.launch.command_line import require_place

_COUNT_PAGE_FAULTS = """
import resource, sys
from dora_jax.launch.command_line import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
import jax
update = jax.jit(lambda x: (x[:, None] * x) @ x)  # x * x is one buffer of 64 MB
x = update(jax.numpy.ones(4096))
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
update(x).block_until_ready()
before = faults()
for _ in range(24):
    update(x + 1).block_until_ready()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_kept():
    """24 updates touch 64 MB each, which is 393,216 pages for the kernel to clear.

    Kept memory is cleared when the heap grows, which something small that lies in the way of the
    next 64 MB may cause now and then.
    """

    def faults(how: str) -> int:
        command = [sys.executable, "-c", _COUNT_PAGE_FAULTS, how]
        one_device = {**os.environ, "XLA_FLAGS": ""}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=one_device)
        return int(done.stdout)

    assert faults("kept") < 250_000 < 350_000 < faults("given back")


@pytest.mark.parametrize(
    ("main", "arguments"), [(data.main, ["--task=nq"]), (probe.main, ["--run=nowhere"])]
)
def test_json_that_cannot_be_written_is_told_before_the_work(main, arguments, tmp_path, capsys):
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / "nowhere" / "facts.json", "No such file or directory"),
        (tmp_path / "file" / "facts.json", "Not a directory"),
        (tmp_path, "Is a directory"),
    ):
        assert main([*arguments, f"--json={path}"]) == 2
        told = capsys.readouterr()
        assert (told.out, told.err) == ("", f"error: --json={path} cannot be written: {reason}.\n")
    assert os.listdir(tmp_path) == ["file"]


def test_looking_for_a_place_leaves_nothing_and_spoils_nothing(tmp_path: Path):
    file = tmp_path / "facts.json"
    require_place("--json", str(file))
    assert not list(tmp_path.iterdir())
    file.write_text("old")
    require_place("--json", str(file))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
