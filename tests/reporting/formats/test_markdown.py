from __future__ import annotations

import re

import pytest

from mpsdiag.reporting.formats import markdown
from mpsdiag.reporting.pictures.drawing import Svg
from mpsdiag.reporting.story.report import assemble


def cells(row: str) -> list[str]:
    """Split a table row as GitHub does: at pipes without a backslash before them."""
    return re.split(r"(?<!\\)\|", row)[1:-1]


def check(text: str) -> None:
    """Every table has the same number of cells in each row, every fold and fence is closed, no raw tag is there."""
    fence = ""
    width = 0
    depth = 0
    for line in text.splitlines():
        if fence:
            fence = "" if line == fence else fence
            continue
        if found := re.match(r"^(`{3,})text$", line):
            fence = found.group(1)
            continue
        if line.startswith("|"):
            width = width or len(cells(line))
            assert len(cells(line)) == width, line
            assert "<" not in line
        else:
            width = 0
        depth += line.count("<details>") - line.count("</details>")
        bare = re.sub(r"^<details><summary>|</summary>$|^</details>$|^<picture>.*</picture>$", "", line)
        assert "<" not in bare, line
    assert not fence
    assert depth == 0


def test_hostile_texts_break_no_table_no_fold_and_no_fence(nasty):
    check(markdown.render(nasty))


def test_a_megabyte_of_text_is_cut(hostile):
    text = markdown.render(hostile("megabyte"))
    check(text)
    assert len(text) < markdown.GITHUB_LIMIT


def test_everything_of_the_issue_is_there_in_its_order(stories):
    text = markdown.render(stories["every_end"])
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "Which fix resolves it",
        "What it costs",
        "Losses",
        "Cells that did not finish",
        "Environment",
        "Command",
        "How to read it",
    ]
    assert "LLVM ERROR: Failed to infer result type(s)." in text
    assert "mpsdiag bench --device mps --out reports/mac" in text


@pytest.mark.parametrize("models", [30, 200])
def test_it_shortens_itself_below_the_limit_and_says_so(record, journal_of, models):
    records = []
    for number in range(models):
        for attention in ("sdpa", "eager", "safe_sdpa"):
            for side in ("left", "right"):
                axes = {"model": f"model-{number}", "attn_implementation": attention, "padding_side": side}
                records += [record(**axes), record(number=1, samples=(0.01, 0.012), **axes)]
                records += [record("crash", 2, log_tail="x" * 3000, **axes)]
    text = markdown.render(assemble([journal_of(*records)]))
    assert len(text) < 65_536
    assert "Shortened to fit an issue on GitHub" in text
    check(text)


def test_a_report_that_is_still_too_long_is_cut_between_blocks(stories):
    for limit in (3000, 5000, 9000):
        text = markdown.render(stories["every_end"], limit=limit)
        assert len(text) < limit
        check(text)
    assert "Cut here to fit" in markdown.render(stories["every_end"], limit=3000)


def test_short_reports_are_not_called_shortened(stories):
    assert "Shortened" not in markdown.render(stories["every_end"])


def test_pictures_are_linked_for_both_themes(stories):
    text = markdown.render(stories["every_end"], {"time-1-1": Svg('a b"/x.light.svg', "x.dark.svg")})
    assert '<source media="(prefers-color-scheme: dark)" srcset="x.dark.svg">' in text
    assert 'src="a%20b%22/x.light.svg"' in text
    assert "losses-1-1" not in text


OURS = re.compile(r"</?(details|summary|picture)>|<source [^>]*>|<img [^>]*>")


def test_an_independent_parser_sees_the_same_tables_and_no_foreign_html(nasty):
    from markdown_it import MarkdownIt

    text = markdown.render(nasty)
    widths = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        for one in (token, *(token.children or ())):
            assert one.type not in {"link_open", "image", "code_inline"}
            if one.type.startswith("html"):
                assert "<" not in OURS.sub("", one.content).replace("&lt;", ""), one.content
        if token.type == "tr_open":
            widths.append(0)
        widths[-1:] = [widths[-1] + (token.type in {"th_open", "td_open"})] if widths else []
        if token.type == "table_close":
            assert len(set(widths)) == 1
            widths = []
    # Every table that we wrote is one to the parser as well.
    assert text.count("\n|---") == sum(
        token.type == "table_open" for token in MarkdownIt("commonmark").enable("table").parse(text)
    )
