"""The report as one self-contained HTML page: no network, no JavaScript needed, light and dark, any screen size."""

import base64
import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mpsdiag import __version__
from mpsdiag.escape import log_text, one_line, redact
from mpsdiag.reporting.layout.blocks import Document, Limits
from mpsdiag.reporting.layout.sections import document
from mpsdiag.reporting.pictures.drawing import Svg
from mpsdiag.reporting.story.report import Report

LIMITS = Limits(rows=1000, cell=300, panels=40, logs=100, log_length=8000)
# A finding of check or trace fills one table cell, and is shown completely.
WHOLE = replace(LIMITS, cell=1000)
ALONE = "This page loads nothing from the network."


def render(report: Report, pictures: Mapping[str, Svg] | None = None) -> str:
    """Render a report as a page with embedded drawings."""
    footer = f"mpsdiag {report.version}, run of {report.created}. {ALONE}"
    return page(document(report, LIMITS), LIMITS, pictures or {}, footer=footer)


def page(made: Document, limits: Limits = WHOLE, pictures: Mapping[str, Svg] | None = None, *, footer: str = "") -> str:
    """Lay out a document on a page.

    The content security policy allows only our own style and script, by their hashes, and embedded pictures: even a
    text that slipped through the escaping could neither run nor load anything.
    """
    style = _source("report.css")
    script = _source("sort.js")
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            page=made,
            limits=limits,
            pictures=pictures or {},
            footer=footer or f"mpsdiag {__version__}. {ALONE}",
            style=Markup(style),  # noqa: S704 - our own file
            script=Markup(script),  # noqa: S704 - our own file
            style_hash=Markup(_hash(style)),  # noqa: S704 - base64
            script_hash=Markup(_hash(script)),  # noqa: S704 - base64
        )
    )


def fragment(made: Document, limits: Limits = WHOLE, pictures: Mapping[str, Svg] | None = None) -> str:
    """Lay out a document as a part of another page, such as a notebook, without style and scripts."""
    template = _environment().get_template("fragment.html.j2")
    return template.render(page=made, limits=limits, pictures=pictures or {})


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mpsdiag.reporting.formats", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=False,
        auto_reload=False,
    )
    environment.filters.update(
        # A page gets shared: personal words are removed from every text on it.
        line=lambda text, *limit: one_line(redact(text), *limit),
        log=lambda text, *limit: log_text(redact(text), *limit),
        kind=lambda block: type(block).__name__,
        embed=lambda svg: f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}",
        sortkey=lambda value: "Infinity" if math.isinf(value) else f"{value:.9g}",
    )
    return environment


def _source(name: str) -> str:
    loader = PackageLoader("mpsdiag.reporting.formats", "templates")
    return loader.get_source(_environment(), name)[0]


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
