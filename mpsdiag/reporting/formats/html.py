"""The report as one self-contained HTML page: no network, no need of JavaScript, light and dark, phone and wall."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mpsdiag.reporting.formats.escape import log_text, one_line
from mpsdiag.reporting.layout.blocks import Limits, Section
from mpsdiag.reporting.layout.tables import sections
from mpsdiag.reporting.pictures.pictures import Svg
from mpsdiag.reporting.story.story import Story

LIMITS = Limits(rows=1000, panels=40, logs=100, log_length=8000)


def render(story: Story, pictures: Mapping[str, Svg] | None = None) -> str:
    """Render a story as a page.

    Args:
        story: What to show.
        pictures: The drawings by name; they are embedded.
    """
    words = {scene.verdict.word for scene in story.scenes}
    word = next((one for one in ("affected", "undecided", "not_affected") if one in words), "undecided")
    return page(
        "mpsdiag report",
        story.headline,
        word,
        sections(story, LIMITS),
        pictures or {},
        footer=f"mpsdiag {story.version}, run of {story.created}. Nothing on this page is fetched from anywhere.",
    )


def page(
    title: str,
    headline: str,
    word: str,
    parts: Sequence[Section],
    pictures: Mapping[str, Svg],
    *,
    footer: str,
) -> str:
    """Lay sections out on a page.

    The content security policy allows our own style and script by their hashes and embedded pictures: even a
    text that slipped through the escaping could neither run nor load anything.

    Args:
        title: Of the page.
        headline: The sentence to open with.
        word: A verdict; gives the headline its colour.
        parts: The sections.
        pictures: The drawings by name.
        footer: Who made it, and when.
    """
    environment = _environment()
    style = _source("report.css")
    script = _source("sort.js")
    return environment.get_template("report.html.j2").render(
        title=title,
        headline=headline,
        word=word,
        sections=parts,
        pictures=pictures,
        footer=footer,
        style=Markup(style),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        style_hash=Markup(_hash(style)),  # noqa: S704 - base64
        script_hash=Markup(_hash(script)),  # noqa: S704 - base64
    )


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
        line=one_line,
        log=lambda text: log_text(text, LIMITS.log_length),
        kind=_kind,
        embed=_embed,
        sortkey=_sortkey,
    )
    return environment


def _source(name: str) -> str:
    loader = PackageLoader("mpsdiag.reporting.formats", "templates")
    return loader.get_source(_environment(), name)[0]


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _kind(block: Any) -> str:
    return type(block).__name__


def _embed(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _sortkey(value: float) -> str:
    return "Infinity" if math.isinf(value) else f"{value:.9g}"
