"""The kept pictures show what the program shows; `make pictures` draws them again."""

import importlib.util
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def texts(svg):
    """What stands in a drawing, with every number as #."""
    root = ET.fromstring(svg)  # noqa: S314 - our own drawings
    words = " ".join(word for one in root.iter("{http://www.w3.org/2000/svg}text") for word in one.itertext())
    return re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "#", " ".join(words.replace("\xa0", " ").split()))


@pytest.fixture(scope="module")
def drawn():
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pictures()


def test_every_kept_picture_says_what_the_program_says(drawn):
    assert ROOT / "docs" / "check.svg" in drawn
    for path, svg in drawn.items():
        assert texts(path.read_text(encoding="utf-8")) == texts(svg), f"{path} is out of date: make pictures"


def test_a_picture_of_another_time_is_noticed(drawn):
    svg = drawn[ROOT / "docs" / "check.svg"]
    assert texts(svg.replace("affected", "unaffected")) != texts(svg)


def test_no_picture_is_kept_that_is_not_drawn(drawn):
    kept = set(ROOT.glob("reports/*/report.pictures/*.svg"))
    assert kept == {path for path in drawn if path.parent.name == "report.pictures"}


def test_a_drawing_of_where_the_nan_spreads_stays_small(drawn):
    for path, svg in drawn.items():
        if path.name.startswith("spread"):
            assert len(svg) < 60_000
            assert svg.count("<path") < 60
