"""A sweep file of the bundled sample's rehearsal."""

from __future__ import annotations

from pathlib import Path


def write_sweep(directory: Path, axes: str, more: str = "") -> Path:
    """Writes one with these axes; its runs lie beside it."""
    file = directory / "sweep.gin"
    base = 'include "wlp_distill.gin"\ninclude "scale/rehearsal.gin"\n'
    model_dir = f'MODEL_DIR = "{directory / "runs"}"\n'
    file.write_text(f"# A sweep\n{base}{axes}\n{model_dir}{more}\n")
    return file
