"""The rules of the design that a reviewer would otherwise have to keep in mind.

Imports only go down, heavy libraries stay where they belong, nothing below `launch/` knows at
which scale it runs, and files, functions and docstrings keep their form.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from gin.config import config_parser

from dora_jax.launch.sweep_files import AsWritten

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"dora_jax": "dora_jax", "tasks": "dora_jax.tasks", "launch": "dora_jax.launch"}

# A module may import what stands on a lower level or under its own name here.
LEVELS = {
    "dora_jax.checks": 0,
    "dora_jax.fingerprints": 0,
    "dora_jax.shapes": 0,
    "dora_jax.stopping": 0,
    "dora_jax.whole_files": 0,
    "dora_jax.training_config": 1,
    "dora_jax.config": 2,
    "dora_jax.cost": 3,
    "dora_jax.data": 3,
    "dora_jax.metrics": 3,
    "dora_jax.model": 3,
    "dora_jax.parallel": 3,
    "dora_jax.planning": 3,
    "dora_jax.annotators": 4,
    "dora_jax.checkpoints": 4,
    "dora_jax.refilled": 4,
    "dora_jax.run_folders": 4,
    "dora_jax.tasks": 4,
    "dora_jax.predict": 5,
    "dora_jax.run_records": 5,
    "dora_jax.train": 5,
    "dora_jax.stages": 6,
    "dora_jax.strategies": 7,
    "dora_jax.sweeps": 0,
    "dora_jax.report": 3,
    "dora_jax.launch": 9,
}
TENSORFLOW = {"tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio", "t5", "t5x"}
HEAVY = TENSORFLOW | {"torch", "transformers", "gin"}
# Not even lazily anywhere else.
MAY_IMPORT_TENSORFLOW = {"tasks/seqio_registry.py", "tasks/prepare.py", "tasks/tfds/building.py"}
MAY_IMPORT_TORCH = {
    ("dora_jax/checkpoints/tensor_files.py", "_torch"),
    ("dora_jax/metrics/bert_score.py", "_load_encoder"),
}
MAY_READ_SCALE = {"dora_jax/cost/ledger_rows.py", "dora_jax/stages/context.py"}  # to write it down

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80


class Import(NamedTuple):
    """One imported module, and whether the statement runs when the file is imported."""

    module: str
    function: str | None
    at_import_time: bool


class Source(NamedTuple):
    """One Python file of the three packages."""

    path: str
    module: str
    tree: ast.Module


@functools.cache
def sources() -> tuple[Source, ...]:
    found = []
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            module = ".".join(parts).removesuffix(".__init__")
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found.append(Source(path.relative_to(ROOT).as_posix(), module, tree))
    return tuple(found)


def imports_of(tree: ast.Module) -> Iterator[Import]:
    def visit(node: ast.AST, function: str | None, runs: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, function, runs) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            assert node.module is not None
            for alias in node.names:
                yield Import(f"{node.module}.{alias.name}", function, runs)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            runs = False
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function, runs = node.name, False
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function, runs)

    return visit(tree, None, True)


def our_imports(source: Source) -> Iterator[tuple[str, Import]]:
    """The modules of ours that a file imports; `from module import name` counts as module."""
    modules = {each.module for each in sources()}
    for imported in imports_of(source.tree):
        module = imported.module
        while module and module not in modules:
            module = module.rpartition(".")[0]
        if module:
            yield module, imported


def part_of(module: str) -> str:
    """The name in LEVELS that a module falls under."""
    return ".".join(module.split(".")[:2])


def functions_of(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_every_module_has_a_level() -> None:
    parts = {part_of(source.module) for source in sources()} - {"dora_jax"}
    assert parts == set(LEVELS)


def test_imports_only_go_down() -> None:
    upwards = []
    for source in sources():
        here = part_of(source.module)
        if here == "dora_jax":
            continue  # it hands on names from below, and only when asked for one
        for module, _ in our_imports(source):
            there = part_of(module)
            if there not in ("dora_jax", here) and LEVELS[there] >= LEVELS[here]:
                upwards.append(f"{source.path} imports {module}")
    assert not upwards


def test_there_is_no_cycle() -> None:
    graph = {
        source.module: {
            module
            for module, imported in our_imports(source)
            if imported.at_import_time and module not in ("dora_jax", source.module)
        }
        for source in sources()
    }
    assert sum(map(len, graph.values())) > 50
    graphlib.TopologicalSorter(graph).prepare()


def test_the_engine_knows_neither_tasks_nor_launch() -> None:
    above = [
        f"{source.path} imports {module}"
        for source in sources()
        if source.path.startswith("dora_jax/")
        for module, _ in our_imports(source)
        if part_of(module) in ("dora_jax.tasks", "dora_jax.launch")
    ]
    assert not above


def heavy_imports() -> Iterator[tuple[Source, str, Import]]:
    for source in sources():
        for imported in imports_of(source.tree):
            library = imported.module.split(".")[0]
            if library in HEAVY:
                yield source, library, imported


def test_heavy_libraries_stay_where_they_belong() -> None:
    strays = []
    for source, library, imported in heavy_imports():
        if library in TENSORFLOW:
            allowed = source.path in MAY_IMPORT_TENSORFLOW
        elif library == "gin":
            allowed = source.path.startswith("launch/")
        else:
            place = (source.path, imported.function)
            allowed = place in MAY_IMPORT_TORCH and not imported.at_import_time
        if not allowed:
            strays.append(f"{source.path} imports {library} in {imported.function or 'module'}")
    assert not strays


def test_the_lists_of_exceptions_hold_nothing_more_than_there_is() -> None:
    found = list(heavy_imports())
    importers = {(s.path, i.function) for s, library, i in found if library == "torch"}
    assert importers == MAY_IMPORT_TORCH
    assert {s.path for s, library, _ in found if library in TENSORFLOW} == MAY_IMPORT_TENSORFLOW


def run_python(code: str) -> str:
    # Another folder, so that no file here shadows a module.
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


BLOCK = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ModuleNotFoundError(name + " is blocked", name=name)

sys.meta_path.insert(0, Refuse())
"""


def test_import_dora_jax_is_light() -> None:
    light = "import sys; import dora_jax; print(*sys.modules)"
    loaded = {name.split(".")[0] for name in run_python(light).split()}
    assert "dora_jax" in loaded
    assert not loaded & (HEAVY | {"jax", "flax", "optax", "orbax", "numpy", "tensorboard"})


def test_the_engine_and_the_tasks_import_without_tensorflow() -> None:
    """All of them in one process in which the heavy libraries cannot be imported."""
    below = [source for source in sources() if not source.path.startswith("launch/")]
    built_on_it = (*MAY_IMPORT_TENSORFLOW, "tasks/tfds/")  # there are subclasses of building.py's
    modules = [each.module for each in below if not each.path.startswith(built_on_it)]
    assert {"dora_jax.strategies", "dora_jax.tasks.wlp"} <= set(modules)
    code = BLOCK.format(names=HEAVY)
    code += f"import importlib\nfor name in {modules}: importlib.import_module(name)\n"
    code += "import jax._src.xla_bridge as bridge\nprint(bridge.backends_are_initialized())"
    assert run_python(code).split() == ["False"]  # and no device is touched


def test_the_engine_does_not_load_heavy_libraries_that_are_there() -> None:
    """Some libraries import TensorFlow if they find it; so this one blocks nothing."""
    modules = [source.module for source in sources() if source.path.startswith("dora_jax/")]
    code = f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
    loaded = {name.split(".")[0] for name in run_python(code + "print(*sys.modules)").split()}
    assert "optax" in loaded
    assert not loaded & HEAVY


def test_nothing_below_launch_knows_the_scale() -> None:
    """`scale` is handed on into records; no branch, comparison or table look-up reads it."""
    guilty = []
    for source in sources():
        if source.path.startswith("launch/"):
            continue
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(source.tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in (each for each in ast.walk(source.tree) if id(each) not in docstrings):
            if isinstance(node, ast.Attribute) and node.attr == "scale":
                if source.path not in MAY_READ_SCALE:
                    guilty.append(f"{source.path}:{node.lineno} reads {ast.unparse(node)}")
            elif isinstance(node, ast.Constant) and "rehears" in str(node.value).lower():
                guilty.append(f"{source.path}:{node.lineno} has the text {node.value!r}")
            for decision in decisions_of(node):
                if re.search(r"\.scale\b|\[.scale.\]|\bscale [!=]= '", ast.unparse(decision)):
                    guilty.append(f"{source.path}:{decision.lineno} decides by the scale")
    assert not guilty


def decisions_of(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
        return [node.test]
    if isinstance(node, ast.Match):
        return [node.subject]
    if isinstance(node, ast.comprehension):
        return node.ifs
    if isinstance(node, ast.Subscript):
        return [node.slice]
    return [node] if isinstance(node, ast.Compare | ast.BoolOp) else []


def test_files_and_functions_are_short() -> None:
    long = []
    for path in [*(ROOT / source.path for source in sources()), *ROOT.glob("tests/**/*.py")]:
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT)
        if text.count("\n") > MAX_FILE_LINES:
            long.append(f"{name}: {text.count(chr(10))} lines, at most {MAX_FILE_LINES}")
        for function in functions_of(ast.parse(text)):
            lines = (function.end_lineno or 0) - function.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                long.append(f"{name}: {function.name} has {lines} lines")
    assert not long


def test_no_grab_bags_and_no_guessing() -> None:
    for source in sources():
        assert Path(source.path).stem not in ("utils", "util", "helpers", "misc", "common")
        calls = [node for node in ast.walk(source.tree) if isinstance(node, ast.Call)]
        called = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
        assert "hasattr" not in called, source.path


def public_definitions(
    tree: ast.Module,
) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return (n for n in tree.body if isinstance(n, definitions) and not n.name.startswith("_"))


def test_what_is_public_has_a_docstring() -> None:
    bare = [
        f"{source.path}:{node.lineno} {node.name}"
        for source in sources()
        for node in public_definitions(source.tree)
        if ast.get_docstring(node) is None
    ]
    assert not bare


def documented_arguments(docstring: str) -> list[str]:
    """The names under `Args:`; one line may name several, `a, b: …`."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", docstring, re.MULTILINE)
    if section is None:
        return []
    lines = section[1].splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    heads = [line.strip().split(":")[0] for line in lines if re.match(rf" {{{indent}}}\S", line)]
    return [name.strip().lstrip("*") for head in heads for name in head.split(",")]


def test_documented_arguments_exist() -> None:
    unknown, documented = [], 0
    for source in sources():
        for function in functions_of(source.tree):
            names = documented_arguments(ast.get_docstring(function) or "")
            arguments = function.args
            there = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            there += [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
            documented += len(names)
            missing = set(names) - {argument.arg for argument in there}
            unknown += [f"{source.path}: {function.name} has no {name!r}" for name in missing]
    assert documented > 50
    assert not unknown


GIN_FILES = sorted(path.relative_to(ROOT / "gin").as_posix() for path in ROOT.glob("gin/**/*.gin"))


@pytest.mark.parametrize("name", GIN_FILES)
def test_gin_file_parses_and_starts_as_a_lab_note(name: str) -> None:
    text = (ROOT / "gin" / name).read_text(encoding="utf-8")
    assert text.startswith("# ")
    statements = list(config_parser.ConfigParser(text, AsWritten()))
    assert statements
    if "/" not in name and name != "run.gin":
        header = text.partition("\n\n")[0]
        assert f"launch/run.py --gin_file=gin/{name}" in header
        for word in ("machine", "hours", "dollars"):
            assert word in header, f"{name}: the header says nothing of {word}"


def test_gin_folder_shadows_nothing() -> None:
    assert "wlp_distill.gin" in GIN_FILES
    assert not list((ROOT / "gin").rglob("__init__.py"))


def test_no_file_names_a_machine() -> None:
    """Paths of the machine it was written on. All that git would take in is read."""
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert Path(__file__).resolve() in paths
    machine_path = re.compile(r"(?<![\w.}~)])/(work|root|opt|home/[a-z]+)/")
    found = []
    for path in paths:
        if path.is_file() and b"\0" not in (content := path.read_bytes())[:4096]:
            for number, line in enumerate(content.decode("utf-8").splitlines(), start=1):
                if machine_path.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found
