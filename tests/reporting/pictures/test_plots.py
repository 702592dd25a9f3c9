from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from mpsdiag.findings import ArrangementResult, FirstLabel, Invariance
from mpsdiag.reporting.formats import terminal
from mpsdiag.reporting.layout.sections import gallery
from mpsdiag.reporting.pictures import plots
from mpsdiag.reporting.pictures.drawing import save
from mpsdiag.reporting.story.report import assemble

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> str:
    root = ET.fromstring(svg)  # noqa: S314 - our own drawing
    return "\n".join("".join(one.itertext()) for one in root.iter(f"{SVG}text"))


@pytest.fixture(scope="module")
def drawn(stories):
    return plots.pictures(stories["both"])


def test_every_place_of_the_story_has_its_drawing(stories, drawn):
    assert list(drawn) == [shown.name for shown in gallery(stories["both"])]
    assert {name.partition("-")[0] for name in drawn} == {"releases", "time", "losses", "spread"}


def test_one_cell_is_no_plural(record, journal_of):
    story = assemble([journal_of(record(), record(number=1, samples=(0.1, 0.1)))])
    assert any("Evaluation step of 1 cell with" in shown.alt for shown in gallery(story))


def test_drawings_are_the_same_every_time(stories, drawn):
    again = plots.pictures(stories["both"])
    assert again == drawn


def test_light_and_dark_differ_in_colours_only(drawn):
    for svg in drawn.values():
        assert svg.light != svg.dark
        assert texts(svg.light) == texts(svg.dark)


def test_cells_that_are_not_right_are_named_at_the_edge_and_have_no_interval(drawn):
    words = texts(drawn["time-1-1"].light)
    assert "NaN" in words
    assert "wrong" in words
    assert "baseline (NaN)" in words
    assert "timed on mps" in words
    assert "timed on cpu without emulation" in texts(drawn["time-2-1"].light)


def test_emulated_is_said_in_the_drawing(drawn):
    assert "emulated MPS of torch 2.8" in texts(drawn["losses-2-1"].light)
    assert "emulated MPS of torch 2.8" in texts(drawn["spread-2-1"].light)
    assert "emulated 2.8" in texts(drawn["releases"].light)


def test_the_first_nan_is_named(drawn):
    assert "NaN: sdpa + standard, left" in texts(drawn["losses-1-1"].light)


def test_nothing_is_fetched(drawn):
    for svg in drawn.values():
        root = ET.fromstring(svg.light)  # noqa: S314 - our own drawing
        for one in root.iter():
            assert one.tag != f"{SVG}script"
            for name, value in one.attrib.items():
                if name.endswith("href"):
                    assert value.startswith(("#", "data:"))


def test_hostile_names_are_drawn_as_text(nasty):
    for svg in plots.pictures(nasty).values():
        texts(svg.light)


def test_files_stand_beside_the_report(tmp_path, drawn):
    files = save(drawn, tmp_path / "my report.md")
    for one in files.values():
        assert (tmp_path / one.light).read_text().startswith("<svg")
        assert (tmp_path / one.dark).exists()


def test_labels_that_leave_no_room_are_no_failure():
    from matplotlib.figure import Figure

    from mpsdiag.reporting.pictures.drawing import draw

    def crowded(theme):
        figure = Figure(figsize=(1, 0.3), layout="constrained")
        figure.subplots().set_ylabel("long " * 30)
        return figure

    assert draw(crowded).light.startswith("<svg")


def test_releases_that_were_measured_stand_beside_those_that_were_emulated(journal_of, record):
    environments = [None, "torch-2.4.1-py3.11-1a", "torch-2.5.0-py3.11-2b"]
    records = [record("ok", device="cpu", environment=name) for name in environments]
    records.append(record("nan", device="cpu", emulate="2.8", emulate_macos=15))
    story = assemble([journal_of(*records)])
    labels = [scene.label for scene in story.scenes]
    assert labels == ["cpu", *(f"cpu, environment {name}" for name in environments[1:]), labels[3]]
    assert "emulated MPS of torch 2.8" in labels[3]
    words = texts(plots.pictures(story)["releases"].light)
    assert "emulated 2.8, macOS 15" in words
    assert "cpu, torch-2.4.1-py3.11-1a" in words


def padded(record, **more):
    """A record of a cell whose left-padded batches are off, and not finite at their first token."""
    results = [
        ArrangementResult(name=name, max_abs_diff=off, allowed=1e-6, holds=off <= 1e-6)
        for name, off in (("alone", 2e-7), ("left", math.inf))
    ]
    found = record("ok", **more)
    found.measured.invariance = Invariance(
        verdict="varies",
        reason="left: the numbers are not finite",
        padding_side="left",
        arrangements=results,
        first_label=FirstLabel(eval_loss=5.6, eval_loss_without=5.5, eval_loss_alone=5.5),
        by_position={"alone": [1e-7, 0.0, 2e-7], "left": [math.inf, *[0.5] * 3000]},
    )
    return found


def test_the_error_of_each_arrangement_is_drawn_by_position(record, journal_of):
    story = assemble([journal_of(record("ok"), padded(record, model="tiny-gpt2"))])
    (shown,) = (shown for shown in gallery(story) if shown.name.startswith("padding"))
    assert shown.name == "padding-1-1"
    drawing = plots.pictures(story)[shown.name]
    words = texts(drawing.light)
    assert all(name in words for name in ("alone", "left", "allowed", "crosses: not finite", "tiny-gpt2"))
    assert texts(drawing.dark) == words
    assert len(drawing.light) < 40_000
    # One cross, for its legend and its place: position 0 is not finite.
    assert "first token" in words
    text = terminal.render(story, width=200)
    said = "labels predicted from a padded position move the mean loss over all labels by +0.1"
    assert f"First label, in sdpa + standard, left, tiny-gpt2: {said}" in text
