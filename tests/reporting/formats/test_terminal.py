from __future__ import annotations

import re
import unicodedata

import pytest

from mpsdiag.reporting.formats import terminal

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def test_nothing_but_colours_reaches_the_terminal(nasty):
    assert "\x1b" not in terminal.render(nasty)
    coloured = terminal.render(nasty, color=True)
    assert "\x1b[" in coloured
    rest = COLOUR.sub("", coloured)
    assert not [one for one in rest if unicodedata.category(one) == "Cc" and one != "\n"]


def test_markup_of_rich_in_a_name_is_shown_as_it_is(hostile):
    assert "[bold red]loud[/]" in terminal.render(hostile("markup"))


def test_a_megabyte_of_text_is_cut(hostile):
    assert len(terminal.render(hostile("megabyte"))) < 30_000


@pytest.mark.parametrize("width", [60, 100, 200])
def test_lines_keep_to_the_width(stories, width):
    from rich.cells import cell_len

    for story in stories.values():
        assert max(cell_len(line) for line in terminal.render(story, width=width).splitlines()) <= width


def test_long_tables_end_with_how_much_is_left_out(record, journal_of):
    from mpsdiag.reporting.story.report import assemble

    trainers = ("standard", "mps_safe", "cpu_loss", "cpu_forward", "grad_eval")
    records = [
        one
        for attention in ("sdpa", "eager", "safe_sdpa", "unmask_sdpa")
        for trainer in trainers
        for one in (
            record(attn_implementation=attention, trainer=trainer),
            record(number=1, samples=(1.0, 1.0), attn_implementation=attention, trainer=trainer),
        )
    ]
    assert "… and 5 more rows" in terminal.render(assemble([journal_of(*records)]))
