"""What a program does before all else where it is started as a file, `python launch/run.py`.

The programs run this file by its path, and do not import it: that works wherever they are started
from, and without dora_jax.
"""

import sys
from pathlib import Path

# Python puts the program's folder first, where names like `data` shadow modules.
_OWN_FOLDER = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _OWN_FOLDER]

try:
    import dora_jax.launch  # noqa: F401
except ModuleNotFoundError:
    sys.exit(
        f"error: dora_jax is not installed in {sys.executable}. In the repository, `make run` "
        "installs it into .venv and starts the main example; `pip install -e .` installs it here."
    )
