"""Maps the root folders `tasks/` and `launch/` to `dora_jax.tasks` and `dora_jax.launch`.

Everything else stands in pyproject.toml. The mapping needs a PEP 517 install, so always
`pip install -e .`: a checkout on PYTHONPATH does not find the mapped packages.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["dora_jax", "dora_jax.*"]),
        "dora_jax.tasks",
        "dora_jax.tasks.samples",
        "dora_jax.launch",
        "dora_jax.gin_files",
    ],
    package_dir={
        "dora_jax.tasks": "tasks",
        "dora_jax.launch": "launch",
        "dora_jax.gin_files": "gin",
    },
    package_data={
        "dora_jax": ["data/sample/**/*.jsonl", "cost/*.json"],
        "dora_jax.gin_files": ["**/*.gin"],
    },
)
