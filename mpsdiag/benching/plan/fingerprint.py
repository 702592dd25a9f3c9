"""What local files hold, in a few letters: part of a cell's key, so that edited data is not taken for the old."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

WHOLE = 64 * 2**20
"""Bytes up to which a file is read whole; of a larger one (weights) both ends and the size stand for it."""
END = 2**20


@functools.cache
def fingerprint(names: tuple[str, ...]) -> str | None:
    """Sixteen hex digits that stand for the contents of local files.

    Args:
        names: Paths of files or folders; names of something else (built in, on the hub) count for nothing.

    Returns:
        None where no name is a path. Where the files are, and when they were written, does not matter.
    """
    digest, found = hashlib.sha256(), False
    for name in names:
        path = Path(name).expanduser()
        for file in _files(path):
            found = True
            digest.update(
                f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape")
            )
            for part in _parts(file):
                digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()[:16] if found else None


def _files(path: Path) -> Iterable[Path]:
    if path.is_file():
        return [path]
    return sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else []


def _parts(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as stream:
            if file.stat().st_size <= WHOLE:
                while part := stream.read(END):
                    yield part
                return
            yield stream.read(END)
            stream.seek(-END, 2)
            yield stream.read(END)
    except OSError:  # whoever loads it will say what is wrong with it
        yield b"unreadable"
