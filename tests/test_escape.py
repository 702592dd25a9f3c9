from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsdiag.escape import ascii_text, cap, cap_tail, log_text, md_block, md_cell, md_text, one_line, terminal_text

TEXTS = st.text(st.characters(), max_size=300) | st.text(alphabet="|\\`*_<>&[]\n\r\x1b\x07mA~#@ ", max_size=80)


@given(TEXTS)
def test_a_cell_stays_one_cell_of_one_line(text):
    cell = md_cell(text)
    assert "\n" not in cell
    assert "\r" not in cell
    assert "|" not in cell
    assert "<" not in cell


@given(TEXTS)
def test_no_character_that_steers_a_terminal_comes_through(text):
    for line in terminal_text(text).split("\n"):
        assert not [one for one in line if unicodedata.category(one) in {"Cc", "Cs"}]
        assert not set(line) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200b\ufeff")


@given(TEXTS)
def test_what_comes_out_can_be_written(text):
    for made in (terminal_text(text), md_cell(text), md_block(text), one_line(text)):
        made.encode("utf-8")


@given(TEXTS)
def test_a_fence_is_longer_than_any_run_of_backticks_inside(text):
    first, *inside, last = md_block(text).split("\n")
    assert first == f"{last}text"
    assert all(len(run) < len(last) for line in inside for run in re.findall("`+", line))


@given(TEXTS, st.integers(1, 50))
def test_lengths_are_kept_to(text, limit):
    assert len(cap(text, limit)) <= limit
    assert len(one_line(text, limit)) <= limit


def test_plain_names_stay_readable():
    assert md_cell("safe_sdpa + mps_safe") == "safe_sdpa + mps_safe"
    assert md_cell("Qwen/Qwen2-0.5B") == "Qwen/Qwen2-0.5B"
    assert md_text("1.02× [0.99, 1.05]") == "1.02× \\[0.99, 1.05\\]"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", "a&#124;b"),
        ("<b>", "&lt;b&gt;"),
        ("&lt;", "&amp;lt;"),
        ("\\|", "\\\\&#124;"),
        ("_x_", "\\_x\\_"),
        ("@team #1", "&#64;team &#35;1"),
        ("# title", "\\# title"),
        ("- item", "\\- item"),
        ("1. item", "1\\. item"),
        ("http://x.example", "http&#58;//x.example"),
    ],
)
def test_markup_is_spelled_out(text, escaped):
    assert md_text(text) == escaped


def test_escape_sequences_go_whole():
    assert terminal_text("\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x07") == "red link"
    assert terminal_text("\x1b]0;title\x1b\\x") == "x"


def test_progress_bars_become_lines():
    assert terminal_text("10%\r20%\r\n") == "10%\n20%\n"


def test_a_long_log_keeps_its_end_from_the_start_of_a_line():
    text = "".join(f"line {number}\n" for number in range(10_000))
    tail = cap_tail(text, 100)
    assert tail.startswith("…\nline ")
    assert tail.endswith("line 9999\n")
    assert len(log_text("x" * 10**6)) < 5000


def test_a_megabyte_takes_no_time():
    import time

    begin = time.process_time()
    for text in ("x" * 10**6, "\x1b]" * 500_000, "`" * 10**6, "\x1b[" * 500_000):
        md_cell(text)
        md_block(text)
        one_line(text)
    assert time.process_time() - begin < 5.0  # a quadratic pattern takes hours


def test_marks_have_ascii_spellings():
    assert ascii_text("✓ exact ≈ moved ✗ NaN 1.02× – 3 µs") == "+ exact ~ moved x NaN 1.02x - 3 us"
    assert ascii_text("───→") == "---->"
    assert ascii_text("▲▼").isascii()
