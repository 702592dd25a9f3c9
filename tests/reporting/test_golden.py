"""What is rendered from the journals of tests/data, word for word.

After a change that is meant: MPSDIAG_UPDATE_GOLDEN=1 pytest tests/reporting/test_golden.py, then read the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpsdiag.reporting.formats import cells, html, markdown, terminal

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
FORMATS = {
    "txt": terminal.render,
    "md": markdown.render,
    "html": html.render,
    "csv": cells.csv_text,
    "json": cells.json_text,
}


@pytest.mark.parametrize(
    ("name", "suffix"),
    [(name, suffix) for name in ("every_end", "emulated", "compared") for suffix in FORMATS]
    + [("torn", suffix) for suffix in ("txt", "md")],
)
def test_it_is_rendered_as_before(stories, name, suffix):
    text = FORMATS[suffix](stories[name])
    path = GOLDEN / f"{name}.{suffix}"
    if "MPSDIAG_UPDATE_GOLDEN" in os.environ:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    assert text == path.read_text(encoding="utf-8")
