"""A page's figures as files beside it: SVG, PNG and CSV of each."""

from __future__ import annotations

import csv
import io
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

from dora_jax.report.content import Figure
from dora_jax.report.page import vl_convert
from dora_jax.whole_files import write_whole

WIDTH = 760
PNG_SCALE = 2.0


def export(figure: Figure, folder: Path) -> None:
    """Writes `<name>.svg`, `.png` and `.csv`.

    Args:
      figure: of the page.
      folder: is made where it is not there.

    Raises:
      ValueError: the drawing library is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec = _in_real_colours({**figure.spec, "width": WIDTH})
    svg = vl_convert().vegalite_to_svg(spec)
    write_whole(folder / f"{figure.name}.svg", svg)
    write_whole(folder / f"{figure.name}.png", vl_convert().svg_to_png(svg, scale=PNG_SCALE))
    write_whole(folder / f"{figure.name}.csv", csv_of(figure))


def csv_of(figure: Figure) -> str:
    """The figure's numbers, one line a row, with a head line."""
    columns = list(dict.fromkeys(name for row in figure.rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in row.items()} for row in figure.rows)
    return text.getvalue()


def _plain(value: Any) -> Any:
    # A spreadsheet would take such a text for a formula.
    if isinstance(value, str) and value[:1] in "=+-@\t\r" and value[:1]:
        return f"'{value}"
    return value


def _in_real_colours(spec: dict[str, Any]) -> dict[str, Any]:
    """The light theme's colours in place of their names, which only the page knows."""
    style = resources.files("dora_jax.report").joinpath("page.css").read_text(encoding="utf-8")
    light = dict(re.findall(r"(--[\w-]+): (#\w+);", style.partition("@media")[0]))
    text = re.sub(r"var\((--[\w-]+)\)", lambda name: light[name[1]], json.dumps(spec))
    return {**json.loads(text), "background": light["--paper"]}
