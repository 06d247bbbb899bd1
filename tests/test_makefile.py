"""How the Makefile finds a Python, and what it says where there is none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).resolve().parents[1] / "Makefile"
MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(MAKE is None, reason="there is no make here")

# Stands in for an interpreter: answers the version, has the modules or not, makes a "venv".
PYTHON = """#!/bin/sh
case "$2" in
  *version_info*) echo {version}; exit {unsuitable} ;;
  *ensurepip*) exit {without_venv} ;;
esac
[ "$1 $2" = "-m venv" ] && mkdir "$3" && echo "{version}" > "$3/made-by"
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """The only folder on PATH, with nothing in it but what any Linux has."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("mkdir", "touch"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


def add(programs: Path, name: str, text: str) -> None:
    (programs / name).write_text(text)
    (programs / name).chmod(0o755)


def add_python(
    programs: Path, name: str, version: str, *, suitable: bool = True, venv: bool = True
) -> None:
    text = PYTHON.format(version=version, unsuitable=int(not suitable), without_venv=int(not venv))
    add(programs, name, text)


def make_venv(programs: Path, *variables: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    checkout = programs.parent / "a checkout"  # spaces in its path must not matter
    checkout.mkdir()
    assert MAKE is not None
    command = [MAKE, "-C", str(checkout), "-f", str(MAKEFILE), ".venv/.created", *variables]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": str(programs)})
    return done, checkout / ".venv"


def test_no_python_at_all(programs):
    done, venv = make_venv(programs)
    assert done.returncode != 0
    assert "Found no Python 3.11, 3.12 or 3.13" in done.stderr
    assert "sudo apt-get install python3 python3-venv" in done.stderr
    assert not venv.exists()


def test_python_too_old(programs):
    add_python(programs, "python3", "3.9", suitable=False)
    done, venv = make_venv(programs)
    assert done.returncode != 0
    assert "Found no Python" in done.stderr
    assert not venv.exists()


def test_python_without_venv_says_what_to_install(programs):
    add_python(programs, "python3", "3.12", venv=False)
    done, venv = make_venv(programs)
    assert done.returncode != 0
    assert "sudo apt-get install python3.12-venv" in done.stderr
    assert not venv.exists()


def test_a_shim_that_fails_is_passed_over(programs):
    add(
        programs,
        "python3.11",
        "#!/bin/sh\necho 'pyenv: python3.11: command not found' >&2\nexit 127\n",
    )
    add_python(programs, "python3.12", "3.12", venv=False)
    add_python(programs, "python3", "3.13")
    done, venv = make_venv(programs)
    assert done.returncode == 0, done.stderr
    assert "Making .venv with Python 3.13 (python3)" in done.stdout
    assert (venv / "made-by").read_text() == "3.13\n"


def test_the_tested_version_comes_first(programs):
    for minor in (11, 12, 13):
        add_python(programs, f"python3.{minor}", f"3.{minor}")
    done, venv = make_venv(programs)
    assert done.returncode == 0, done.stderr
    assert (venv / "made-by").read_text() == "3.11\n"


def test_python_can_be_chosen(programs):
    add_python(programs, "python3.11", "3.11")
    add_python(programs, "my python", "3.13")
    done, venv = make_venv(programs, f"PYTHON={programs / 'my python'}")
    assert done.returncode == 0, done.stderr
    assert (venv / "made-by").read_text() == "3.13\n"


@pytest.mark.parametrize(
    ("version", "suitable"),
    [((3, 10), False), ((3, 11), True), ((3, 13), True), ((3, 14), False)],
)
def test_which_versions_are_suitable(monkeypatch, version, suitable):
    """The Makefile's own lines, asked about versions that are not installed here."""
    text = MAKEFILE.read_text(encoding="utf-8")
    start = text.index("import sys\n")
    lines = text[start : text.index("'", start)].replace("\t", "")
    monkeypatch.setattr(sys, "version_info", (*version, 1))
    with pytest.raises(SystemExit) as exited:
        exec(lines, {})
    assert (not exited.value.code) == suitable
