"""Maps the root folders `tasks/`, `launch/` and `gin/` into the package.

They are imported as `dora_jax.tasks` and `dora_jax.launch`; the gin files are the data of
`dora_jax.gin_files`, since a package named `gin` would shadow gin-config. Everything else
stands in pyproject.toml. The mapping needs a PEP 517 install, so always `pip install -e .`:
a checkout on PYTHONPATH does not find the mapped packages.
"""

from setuptools import find_packages, setup

MAPPED = {"dora_jax.tasks": "tasks", "dora_jax.launch": "launch"}

setup(
    packages=[
        *find_packages(include=["dora_jax", "dora_jax.*"]),
        *MAPPED,
        *(f"{name}.{sub}" for name, folder in MAPPED.items() for sub in find_packages(folder)),
        "dora_jax.gin_files",
    ],
    package_dir={**MAPPED, "dora_jax.gin_files": "gin"},
    package_data={
        "dora_jax": [
            "data/sample/**/*.jsonl",
            "cost/*.json",
            "report/page.html",
            "report/page.css",
            "report/page.js",
        ],
        "dora_jax.gin_files": ["**/*.gin"],
    },
)
