"""What is declared is what is imported, what is pinned, and what is shipped."""

from __future__ import annotations

import ast
import re
import runpy
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = packages_distributions()


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def requirement_lines(file: str) -> list[str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


BASE = names(PROJECT["dependencies"])
EXTRAS = {name: names(lines) for name, lines in PROJECT["optional-dependencies"].items()}
OPTIONAL = EXTRAS["torch"] | EXTRAS["llm"]  # imported lazily, by those who have them
ENGINE = names(requirement_lines("requirements-engine.txt"))


def third_party_imports(*folders: str) -> set[str]:
    """Distributions whose modules are imported anywhere in the folders, lazily or not."""
    modules: set[str] = set()
    for file in (file for folder in folders for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found = {node.module or ""}
            else:
                continue
            modules |= {name.split(".")[0] for name in found}
    beside_the_tests = {path.stem for path in (ROOT / "tests").glob("*.py")}
    modules -= {*sys.stdlib_module_names, "dora_jax", *beside_the_tests}
    # What is not installed here, torch perhaps, counts under its module's name.
    return {canonicalize_name(DISTRIBUTIONS.get(module, [module])[0]) for module in modules}


def test_the_base_install_is_what_the_code_imports():
    assert third_party_imports("dora_jax", "tasks", "launch") - OPTIONAL == BASE


def test_the_engines_list_is_what_the_engine_imports():
    assert third_party_imports("dora_jax") - OPTIONAL == ENGINE
    assert not ENGINE & {"tensorflow", "seqio", "tensorflow-datasets", "gin-config"}


def test_the_test_extra_holds_what_the_tests_import():
    brought_along = {"ml-dtypes", "packaging", "setuptools"}  # by JAX, pytest and TensorFlow
    given = BASE | OPTIONAL | EXTRAS["test"] | brought_along
    assert third_party_imports("tests") <= given


@pytest.mark.parametrize("python", PYTHONS)
def test_everything_declared_is_pinned_once(python):
    declared = BASE | OPTIONAL | EXTRAS["test"] - {"dora-jax"}
    pins: dict[str, str] = {}
    for line in requirement_lines("constraints.txt"):
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            assert canonicalize_name(pin.name) not in pins, line
            pins[canonicalize_name(pin.name)] = str(pin.specifier)
    assert declared <= set(pins)
    assert pins["jax"] == ("==0.10.2" if python == "3.11" else "==0.11.2")


def test_constraints_name_versions_and_no_places():
    form = re.compile(r'[a-z0-9-]+==[0-9][0-9a-z.]*(; python_version (<|>=) "3\.12")?')
    wrong = [line for line in requirement_lines("constraints.txt") if not form.fullmatch(line)]
    assert not wrong


@pytest.fixture(scope="module")
def setup_arguments() -> dict[str, Any]:
    """What setup.py hands to setuptools."""
    captured: dict[str, Any] = {}
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.chdir(ROOT)
        patched.setattr(setuptools, "setup", captured.update)
        runpy.run_path("setup.py")
    return captured


def test_every_module_is_in_a_shipped_package(setup_arguments):
    folders = {
        package: ROOT / setup_arguments["package_dir"].get(package, package.replace(".", "/"))
        for package in setup_arguments["packages"]
        if not package.startswith(("dora_jax.tasks.", "dora_jax.launch."))
    }
    for package in setup_arguments["packages"]:
        if package not in folders:  # below a mapped package: its folder is below that one's
            _, mapped, rest = package.split(".", 2)
            folders[package] = folders[f"dora_jax.{mapped}"] / rest.replace(".", "/")
    shipped = {file for folder in folders.values() for file in folder.glob("*.py")}
    written = {
        file for top in ("dora_jax", "tasks", "launch") for file in (ROOT / top).rglob("*.py")
    }
    assert written == shipped


def test_every_data_file_is_shipped(setup_arguments):
    package_data: dict[str, list[str]] = setup_arguments["package_data"]
    shipped = {
        file
        for pattern in package_data["dora_jax.gin_files"]
        for file in (ROOT / "gin").glob(pattern)
    }
    shipped |= {
        file for pattern in package_data["dora_jax"] for file in (ROOT / "dora_jax").glob(pattern)
    }
    there = {
        file
        for folder in ("gin", "dora_jax", "tasks", "launch")
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc")
    }
    assert there == shipped
