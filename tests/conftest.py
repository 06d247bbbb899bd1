"""One strict session for all tests: 8 virtual CPU devices, no silent broadcast, no warning.

Set here and not in the files, because JAX reads them once, before its first array.
"""

from __future__ import annotations

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")
