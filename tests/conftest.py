"""One strict session for all tests: 8 virtual CPU devices, no silent broadcast, no warning.

Set here and not in the files, because JAX reads them once, before its first array.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture(scope="module")
def compiled_cheaply(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs that are hardly optimised, and compiled once for all files of a process."""
    from tiny_run import compiling_cheaply  # which imports the engine; most files need less

    with compiling_cheaply(tmp_path_factory.getbasetemp() / "compiled"):
        yield


@pytest.fixture(scope="module")
def one_device() -> Iterator[None]:
    """Programs for all eight take several times as long to compile."""
    from tiny_run import on_one_device

    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        yield
