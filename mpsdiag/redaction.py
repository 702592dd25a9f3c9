"""What gives away a person or opens a door, taken out of everything that is made to be pasted or shared."""

from __future__ import annotations

import functools
import getpass
import re
import socket
from pathlib import Path
from typing import Any

SHOWN_VARIABLES = frozenset(
    {
        "ACCELERATE_MIXED_PRECISION",
        "ACCELERATE_TORCH_DEVICE",
        "ACCELERATE_USE_CPU",
        "ACCELERATE_USE_MPS_DEVICE",
        "HF_DATASETS_OFFLINE",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "HF_HUB_DISABLE_TELEMETRY",
        "HF_HUB_DISABLE_XET",
        "HF_HUB_OFFLINE",
        "MPSDIAG_CACHE_GIB",
        "MPSDIAG_RUN_EMULATE",
        "MPSDIAG_RUN_EMULATE_MACOS",
        "MPSDIAG_RUN_FIX",
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_DEBUG_MPS_ALLOCATOR",
        "PYTORCH_ENABLE_MPS_FALLBACK",
        "PYTORCH_MPS_FAST_MATH",
        "PYTORCH_MPS_HIGH_WATERMARK_RATIO",
        "PYTORCH_MPS_LOW_WATERMARK_RATIO",
        "PYTORCH_MPS_PREFER_METAL",
        "TRANSFORMERS_OFFLINE",
        "TRANSFORMERS_VERBOSITY",
    }
)
"""Variables whose values are switches and numbers; of all others only that they are set is shown."""

# Every pattern begins where a word begins: begun anywhere, it would take quadratic time on a long word.
# What gives away a person or opens a door, each with what stands in its place; a login comes before an address.
_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), mark)
    for pattern, mark in (
        (r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", "<token>"),
        (r"(?<=://)[^/@\s]+@", "<login>@"),
        (r"(?<![\w/.:-])[\w.+-]+:[^\s@/:]+@(?=[\w.-])", "<login>@"),
        (r"\beyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)?", "<token>"),
        (
            r"\b(?:hf|api|sk|pk|rk|gh[pousr]|glpat|github_pat|npm|pypi|xox[abeoprs]|dop_v1|dckr_pat|AGE-SECRET-KEY)[-_][\w-]{8,}",
            "<token>",
        ),
        (r"\b(?:AKIA|ASIA|AGPA|AIDA|AROA|ANPA)[A-Z0-9]{12,}", "<token>"),
        (r"\bAIza[\w-]{30,}|\bya29\.[\w-]{20,}|\bSG\.[\w-]{16,}\.[\w-]{16,}", "<token>"),
        (r"\b(hooks\.slack\.com/services/)[\w/]+", r"\1<token>"),
        (r"(?i)\b(bearer|basic|negotiate)\s+[\w.~+/=-]{8,}", r"\1 <token>"),
        (r"(?i)\b(authorization|cookie)(\"?'?\s*[:=]\s*\"?'?)(?!\w+ <)[^\"'\n]{6,}", r"\1\2<token>"),
        (
            # --hub_token VALUE, as command lines have it
            (
                r"(?i)(?<![\w-])(--?(?!-|pad|eos|bos|unk|sep|cls|mask|image)[\w-]*"
                r"(?:token|secret|passw\w*|passphrase|api[_-]?key|cookie|credentials?)\s+[\"']?)"
                r"(?!\d+\b|[<-])[^\s\"']{6,}"
            ),
            r"\1<token>",
        ),
        (
            r"(?i)([?&;][\w.-]*(?:token|key|secret|passw|pwd|sig|auth|credential|session|code)[\w.-]*=)[^&\s#\"'<>]+",
            r"\1<token>",
        ),
        (
            # NAME=value and "name": value, but not pad_token and the like, and no numbers
            (
                r"(?i)(?<![A-Za-z0-9_-])((?:(?!pad|eos|bos|unk|sep|cls|mask|image)[A-Za-z0-9]*[_-])*"
                r"(?:token|secret|[a-z0-9]*pass(?:word|wd|phrase)|(?:api|access|account|private)[_-]?key|cookie"
                r"|credentials?)"
                r"[\"']?\s*[=:]\s*[\"']?)(?!\d+\b|<)[^\s\"',;&<>]{6,}"
            ),
            r"\1<token>",
        ),
        (r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+", "<email>"),
        (r"/(home|Users)/(?!Shared\b)[^/\s:;,\"'<>]+", r"/\1/<user>"),
        (r"(/var/folders/)[^/\s]+/[^/\s]+", r"\1<user>"),
        (r"(?i)(\\Users\\)[^\\\s:;,\"'<>]+", r"\1<user>"),
    )
)
# No secret is without one of these; most texts are.
_SUSPECT = re.compile(r"[@/\\=:]|[\w-]{12}")
# Names that many machines share say nothing about a person, and stand in other words too.
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
    """A path as `~/...` where it is in the home folder; `expanduser` makes it what it was."""
    home = _home() if path.startswith("/") else ""  # names of models and data are looked at by the hundred thousand
    return f"~{path[len(home) :]}" if len(home) > 1 and (path == home or path.startswith(f"{home}/")) else path


def _home() -> str:
    try:
        return str(Path.home())
    except RuntimeError:  # no such user
        return ""


@functools.lru_cache(maxsize=4096)
def scrub(text: str, *, home: str, user: str, host: str) -> str:
    """Replace personal words in a text.

    Args:
        text: Any text.
        home: The home folder; becomes `~`.
        user: The user name; becomes `<user>` where it stands as a word.
        host: The host name, whole or its first label; becomes `<host>`.
    """
    if len(home) > 1:
        text = text.replace(home, "~")
    if _SUSPECT.search(text):
        for pattern, instead in _SECRETS:
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
