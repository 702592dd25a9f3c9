"""What a plan must ask the machine: which cells cannot run on it, and what its local files contain."""

import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from mpsdiag.scenario.scenario import Scenario


def unavailable(cell: Scenario) -> str | None:
    """Why a cell cannot run here, or None if it can."""
    lacking = None
    if cell.emulate is not None:
        if cell.device != "cpu":
            return f"the emulation of MPS runs on the CPU, not on {cell.device}"
        from mpsdiag.emulation.selection import Emulation

        if (lacking := Emulation(cell.emulate).lacks_dtype(cell.dtype)) is not None:
            return lacking
    if cell.device != "cpu":  # every dtype of ours computes there, and asking would cost an import of torch
        from mpsdiag.device import supports_dtype

        lacking = _unusable(cell.device) or supports_dtype(cell.device, cell.dtype)
    if lacking is not None or cell.attn_implementation in {"sdpa", "eager"}:
        return lacking
    from mpsdiag.fixes.modes import mode_named

    return mode_named(cell.attn_implementation).unavailable(cell.device, cell.dtype, training=cell.max_steps > 0)


@functools.cache
def _unusable(device: str) -> str | None:
    from mpsdiag.device import usable

    state = usable(device)
    return None if state.ok else state.reason


WHOLE = 64 * 2**20
"""Largest file, in bytes, that is read completely; a larger one (weights) is represented by its ends and size."""
END = 2**20


@functools.cache
def fingerprint(names: tuple[str, ...]) -> str | None:
    """Sixteen hex digits that stand for the contents of local files.

    It is None if no name is a path. The location and the age of the files do not matter.
    """
    digest, found = hashlib.sha256(), False
    for name in names:
        path = Path(name).expanduser()
        for file in _files(path):
            found = True
            digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
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
    except OSError:  # the code that loads it reports the problem
        yield b"unreadable"
