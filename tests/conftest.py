"""One strict session for all tests: 8 virtual CPU devices, no silent broadcast, no warning.

Set here and not in the files, because JAX reads them once, before its first array.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture(scope="module")
def compiled_cheaply(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs that are hardly optimised, and compiled once for all files of all processes."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(base / "compiled"),
        # Bounded, since JAX locks such a folder alone: no process reads what another half wrote.
        "jax_compilation_cache_max_size": 4 * 2**30,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def one_device() -> Iterator[None]:
    """Programs for all eight take several times as long to compile."""
    yield from _only(1)


@pytest.fixture(scope="module")
def two_devices() -> Iterator[None]:
    """The least that a mesh can split work over."""
    yield from _only(2)


def _only(count: int) -> Iterator[None]:
    some = jax.devices()[:count]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: some)
        yield


@pytest.fixture
def ended_at_last() -> Iterator[list[subprocess.Popen[str]]]:
    """Takes processes that must not outlive a test that fails."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.communicate()
