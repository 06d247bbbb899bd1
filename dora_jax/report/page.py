"""A page as one file: style, script, figures and numbers inside, nothing fetched from anywhere.

Texts of runs go through Jinja's escaping, JSON through `json_in_html`; there is no other way in.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

from dora_jax.report.content import Page

# In place of what could end a script element, or a line of JavaScript.
_IN_HTML = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
_SCRIPT = "window.vegaEmbed = vegaEmbed;"


def html_of(page: Page) -> str:
    """The page as HTML.

    Raises:
      ValueError: the drawing library is not installed.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    markup = environment.from_string(_file("page.html"))
    specs = {figure.name: _vega(figure.spec) for figure in page.figures}
    budgets = page.budgets
    state = {
        "figures": specs,
        "budgets": None if budgets is None else {"answers": budgets.answers},
    }
    return markup.render(
        page=page,
        style=_verbatim(_file("page.css"), "style"),
        library=_verbatim(_library(), "script"),
        script=_verbatim(_file("page.js"), "script"),
        state=_verbatim(json_in_html(state), "script"),
    )


def json_in_html(content: Any) -> str:
    """JSON that may stand in a script element, whatever texts are in it."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False).translate(_IN_HTML)


def vl_convert() -> Any:
    """The library that draws and that carries the page's JavaScript.

    Raises:
      ValueError: it is not installed.
    """
    try:
        import vl_convert
    except ModuleNotFoundError as error:
        raise ValueError(
            "A report needs vl-convert-python, which is not installed here: `pip install "
            "vl-convert-python`, or copy the runs to a machine that has all of dora_jax."
        ) from error
    return vl_convert


def _vega(spec: Any) -> dict[str, Any]:
    # Compiled here, so that the browser need not: that is most of a page's loading time.
    return vl_convert().vegalite_to_vega(spec)


@functools.cache
def _library() -> str:
    return vl_convert().javascript_bundle(_SCRIPT)


def _file(name: str) -> str:
    return resources.files("dora_jax.report").joinpath(name).read_text(encoding="utf-8")


def _verbatim(text: str, element: str) -> str:
    """Text that goes into the page as it is: our own, or by `json_in_html`.

    Raises:
      ValueError: it would end its element.
    """
    if f"</{element}" in text.lower():
        raise ValueError(f"text for <{element}> holds its end; that is a fault of dora_jax.")
    return text
