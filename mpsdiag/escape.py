"""Untrusted text made harmless: model ids, paths, errors and logs may hold anything, and a megabyte of it."""

from __future__ import annotations

import re
import unicodedata

from mpsdiag.redaction import redact

CELL_LIMIT = 200
LOG_LIMIT = 4000

# Escape sequences of terminals: CSI (colours, cursor), OSC (titles, links) and the two-character ones.
_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-Z\\^_]")
# Control characters, except newline and tab; and the invisible ones that reorder text or hide in it.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"
    r"\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
# Characters with a meaning in GitHub's Markdown or in HTML.
_MARKDOWN = {one: f"\\{one}" for one in "\\`*[]~$"}
_MARKDOWN |= {"|": "&#124;", "&": "&amp;", "<": "&lt;", ">": "&gt;"}
_SPECIAL = re.compile("[" + re.escape("".join(_MARKDOWN)) + "]")
# An underscore inside a word emphasizes nothing in GitHub's Markdown; elsewhere it may.
_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_CALL = re.compile(r"(?<!&)[@#](?=\w)")
_AUTOLINK = re.compile(r"(?i)\b(https?|ftp)://|\bwww\.")


def cap(text: str, limit: int = CELL_LIMIT) -> str:
    """Shorten a text to at most `limit` characters, the last of them `…`."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def cap_tail(text: str, limit: int = LOG_LIMIT) -> str:
    """Keep the last `limit` characters of a log, from the start of a line where there is one."""
    if len(text) <= limit:
        return text
    tail = text[-limit:]
    _, newline, rest = tail.partition("\n")
    return "…\n" + (rest if newline and rest else tail)


def terminal_text(text: str) -> str:
    """Take out what steers a terminal: escape sequences, control characters, text direction. Newlines stay.

    What no terminal can show (a lone surrogate, a character that is not assigned) becomes a question mark.
    """
    if text.isprintable():
        return text
    text = text.replace("\r\n", "\n").replace("\r", "\n").expandtabs(4)
    text = _CONTROL.sub("", _SEQUENCE.sub("", text))
    strange = {one for one in set(text) if not one.isprintable() and one != "\n"}
    return text.translate({ord(one): " " if one.isspace() else "?" for one in strange})


def one_line(text: str, limit: int = CELL_LIMIT) -> str:
    """Make harmless, put on one line, shorten: what a table cell or a sentence can take."""
    return cap(" ".join(terminal_text(text[: 8 * limit]).split()), limit)


def log_text(text: str, limit: int = LOG_LIMIT) -> str:
    """Make the end of a log harmless, keeping its lines."""
    return terminal_text(cap_tail(text, limit)).strip("\n")


def md_text(text: str, limit: int = 2000) -> str:
    """Escape a sentence for GitHub's Markdown, on one line; it begins no list, heading or quotation."""
    escaped = md_cell(text, limit)
    escaped = re.sub(r"^([-+=#])", r"\\\1", escaped)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", escaped)


def md_cell(text: str, limit: int = CELL_LIMIT) -> str:
    """Escape a text for a cell of a Markdown table: one line, no pipe, no markup, `limit` characters at most."""
    # Markdown is what gets pasted: what gives somebody away is taken out here, before the escapes hide it.
    escaped = _SPECIAL.sub(lambda found: _MARKDOWN[found.group()], one_line(redact(text[: 8 * limit]), limit))
    escaped = _UNDERSCORE.sub(r"\\_", escaped)
    # These would call people, link other issues, link addresses.
    escaped = _CALL.sub(lambda found: f"&#{ord(found.group())};", escaped)
    return _AUTOLINK.sub(lambda found: found.group().replace(":", "&#58;").replace(".", "&#46;"), escaped)


def md_block(text: str, limit: int = LOG_LIMIT) -> str:
    """Fence a log: the fence is longer than any run of backticks in it."""
    body = log_text(redact(text), limit)
    longest = max((len(run) for run in re.findall(r"`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{body}\n{fence}"


def ascii_text(text: str) -> str:
    """Spell the marks of a report with ASCII, for a terminal that cannot show them."""
    text = text.translate(_PLAIN)
    return unicodedata.normalize("NFKD", text).encode("ascii", "replace").decode("ascii")


_PLAIN: dict[int, int | str] = {**str.maketrans("✓≈✗≠–—×µ·─", "+~x!--xu--"), ord("…"): "...", ord("→"): "->"}
