"""Makes texts harmless for where they are shown: no control characters, no markup, no secrets, no personal names."""

import functools
import getpass
import re
import socket
import unicodedata
from pathlib import Path
from typing import Any

from mpsdiag.serialization import read_toml

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
    """Keep the last `limit` characters of a log, if possible from the start of a line."""
    if len(text) <= limit:
        return text
    tail = text[-limit:]
    _, newline, rest = tail.partition("\n")
    return "…\n" + (rest if newline and rest else tail)


def terminal_text(text: str) -> str:
    """Remove whatever controls a terminal: escape sequences, control characters, text direction. Newlines stay.

    Characters that no terminal can show (lone surrogates, unassigned characters) become question marks.
    """
    if text.isprintable():
        return text
    text = text.replace("\r\n", "\n").replace("\r", "\n").expandtabs(4)
    text = _CONTROL.sub("", _SEQUENCE.sub("", text))
    strange = {one for one in set(text) if not one.isprintable() and one != "\n"}
    return text.translate({ord(one): " " if one.isspace() else "?" for one in strange})


def one_line(text: str, limit: int = CELL_LIMIT) -> str:
    """Make harmless, put on one line and shorten, for a table cell or a sentence."""
    return cap(" ".join(terminal_text(text[: 8 * limit]).split()), limit)


def log_text(text: str, limit: int = LOG_LIMIT) -> str:
    """Make the end of a log harmless, keeping its lines."""
    return terminal_text(cap_tail(text, limit)).strip("\n")


def md_text(text: str, limit: int = 2000) -> str:
    """Escape a sentence for GitHub's Markdown, on one line; it cannot begin a list, heading or quotation."""
    escaped = md_cell(text, limit)
    escaped = re.sub(r"^([-+=#])", r"\\\1", escaped)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", escaped)


def md_cell(text: str, limit: int = CELL_LIMIT) -> str:
    """Escape a text for a cell of a Markdown table: one line, no pipe, no markup, `limit` characters at most."""
    # Markdown gets pasted, so personal words are removed here, before the escapes hide them.
    escaped = _SPECIAL.sub(lambda found: _MARKDOWN[found.group()], one_line(redact(text[: 8 * limit]), limit))
    escaped = _UNDERSCORE.sub(r"\\_", escaped)
    # These would mention people, or link issues and addresses.
    escaped = _CALL.sub(lambda found: f"&#{ord(found.group())};", escaped)
    return _AUTOLINK.sub(lambda found: found.group().replace(":", "&#58;").replace(".", "&#46;"), escaped)


def md_block(text: str, limit: int = LOG_LIMIT) -> str:
    """Fence a log: the fence is longer than any run of backticks in it."""
    body = log_text(redact(text), limit)
    longest = max((len(run) for run in re.findall(r"`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{body}\n{fence}"


def ascii_text(text: str) -> str:
    """Spell the marks of a report in ASCII, for a terminal that cannot show them."""
    text = text.translate(_PLAIN)
    return unicodedata.normalize("NFKD", text).encode("ascii", "replace").decode("ascii")


_PLAIN: dict[int, int | str] = {**str.maketrans("✓≈✗≠–—×µ·─", "+~x!--xu--"), ord("…"): "...", ord("→"): "->"}


@functools.cache
def rules() -> tuple[list[str], list[tuple[re.Pattern[str], str]]]:
    """The variables whose values may be shown (any other is only shown as set), and what is replaced in all texts."""
    found = read_toml(Path(__file__).with_name("escape.toml"))
    return found["shown_variables"], [(re.compile(pattern), mark) for pattern, mark in found["secrets"]]


# Every secret contains one of these; most texts contain none.
_SUSPECT = re.compile(r"[@/\\=:]|[\w-]{12}")
# Names that many machines share identify nobody, and occur in other words too.
_NOBODY = frozenset({"root", "user", "admin", "test", "ubuntu", "runner", "localhost", "local", "mac", "mps", "cpu"})


def redact(text: str) -> str:
    """Replace this machine's home folder, user name and host name, and anything that looks like a token."""
    return scrub(text, home=_home(), user=_user(), host=socket.gethostname()) if text else text


def redact_all(value: Any) -> Any:
    """The same document, with every text in it redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {name: redact_all(one) for name, one in value.items()}
    return [redact_all(one) for one in value] if isinstance(value, list | tuple) else value


def without_home(path: str) -> str:
    """A path as `~/...` if it is in the home folder; `expanduser` reverses this."""
    home = _home() if path.startswith("/") else ""  # called very often, for names of models and data
    return f"~{path[len(home) :]}" if len(home) > 1 and (path == home or path.startswith(f"{home}/")) else path


def _home() -> str:
    try:
        return str(Path.home())
    except RuntimeError:  # no such user
        return ""


@functools.lru_cache(maxsize=4096)
def scrub(text: str, *, home: str, user: str, host: str) -> str:
    """Replace personal words in a text: the home folder by `~`, the user and host name, as words, by marks.

    Of the host name its first label counts too.
    """
    if len(home) > 1:
        text = text.replace(home, "~")
    if _SUSPECT.search(text):
        for pattern, instead in rules()[1]:
            text = pattern.sub(instead, text)
    for word, mark in ((host, "<host>"), (host.partition(".")[0], "<host>"), (user, "<user>")):
        if word and word.lower() not in _NOBODY:
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", mark, text)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""
