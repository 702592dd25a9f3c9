"""The kept pictures show what the program shows; `make pictures` draws them again."""

import re
import runpy
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def texts(svg):
    """What stands in a drawing, with every number as #."""
    root = ET.fromstring(svg)  # noqa: S314 - our own drawings
    words = " ".join(word for one in root.iter("{http://www.w3.org/2000/svg}text") for word in one.itertext())
    return re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "#", " ".join(words.replace("\xa0", " ").split()))


def test_the_kept_pictures_are_those_that_the_program_draws():
    """One test, so that they are drawn once, by one worker."""
    drawn = runpy.run_path(str(ROOT / "docs" / "pictures.py"))["pictures"]()
    for path, svg in drawn.items():
        assert texts(path.read_text(encoding="utf-8")) == texts(svg), f"{path} is out of date: make pictures"
        if path.name.startswith("spread"):
            assert len(svg) < 60_000
            assert svg.count("<path") < 60
    beside_reports = {path for path in drawn if path.parent.name == "report.pictures"}
    assert beside_reports == set(ROOT.glob("reports/*/report.pictures/*.svg"))
    assert set(drawn) - beside_reports == {ROOT / "docs" / "check.svg", ROOT / "reports" / "defects" / "defects.svg"}


def test_a_picture_of_another_time_is_noticed():
    svg = (ROOT / "docs" / "check.svg").read_text(encoding="utf-8")
    assert texts(svg.replace("affected", "unaffected")) != texts(svg)
