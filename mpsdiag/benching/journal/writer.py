"""Writing a journal: whole lines, on the disk before the next cell starts, by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pydantic import BaseModel

from mpsdiag.benching.journal.record import Record
from mpsdiag.errors import BadInput, CannotDecide
from mpsdiag.serialization import dumps, write_atomically

if TYPE_CHECKING:
    from typing_extensions import Self


class JournalFull(CannotDecide):
    """The disk took no more. What was finished is safe; the run stops. Exit code 3."""


class JournalWriter:
    """Appends records to a journal, of cells or of another kind of line; a context manager that holds its lock.

    A new journal is made with its header, whole or not at all. An existing one keeps its header; a torn last
    line is cut off first, so that the next record starts on a line of its own.

    Raises:
        BadInput: Another process writes this journal, or the folder cannot be written.
    """

    def __init__(self, path: Path, header: BaseModel, line: type[BaseModel] = Record) -> None:
        self.path = path
        self._lock = _lock(path)
        try:
            if not path.exists() or path.stat().st_size == 0:
                write_atomically(path, dumps(header.model_dump(by_alias=True)) + "\n")
                _sync_folder(path.parent)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND)
        except OSError as problem:
            os.close(self._lock)
            raise BadInput(f"Cannot write {path}: {problem.strerror}.") from problem
        except BaseException:
            os.close(self._lock)
            raise
        self._size = _mend(self._file, line)

    def append(self, record: BaseModel) -> None:
        """Write a record as one line and wait until it is on the disk.

        Raises:
            JournalFull: The line could not be written whole; nothing of it is left in the file.
        """
        line = (dumps(record.model_dump(by_alias=True)) + "\n").encode("utf-8", errors="replace")
        try:
            written = os.write(self._file, line)
            while written < len(line):
                written += os.write(self._file, line[written:])
            _sync(self._file)
        except OSError as problem:
            os.ftruncate(self._file, self._size)
            raise JournalFull(
                f"Cannot write {self.path}: {problem.strerror}. Every finished cell before this one is safe "
                "in it; free some space and run the same command again, it resumes."
            ) from problem
        self._size += len(line)

    def close(self) -> None:
        """Close the journal and let others write it."""
        os.close(self._file)
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def set_aside(path: Path) -> Path | None:
    """Rename a journal to `journal.1.jsonl` (the first free number) beside it; None if there is none.

    Raises:
        BadInput: Another process writes it.
    """
    if not path.exists():
        return None
    lock = _lock(path)
    try:
        number = 1
        while (kept := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
            number += 1
        path.rename(kept)
    finally:
        os.close(lock)
    return kept


def _lock(path: Path) -> int:
    """Lock a journal through a file beside it; the system lets go when the process ends, however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as problem:
        raise BadInput(
            f"Cannot write into {path.parent}: {problem.strerror}. Choose another folder with --out."
        ) from problem
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise BadInput(
            f"Another mpsdiag (process {owner}) is writing {path}. Wait for it, or choose another folder with "
            "--out."
        ) from problem
    with contextlib.suppress(OSError):  # the process number is only for the sentence above
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _mend(file: int, line: type[BaseModel]) -> int:
    """Cut a torn last line off, or add the line feed it lacks; the size in bytes after that."""
    size = os.fstat(file).st_size
    data = os.pread(file, size, 0)
    if data.endswith(b"\n"):
        return size
    start = data.rfind(b"\n") + 1
    if start and not _is_record(data[start:], line):
        os.ftruncate(file, start)
        return start
    os.write(file, b"\n")
    return size + 1


def _is_record(text: bytes, line: type[BaseModel]) -> bool:
    try:
        line.model_validate_json(text)
    except ValueError:
        return False
    return True


def _sync(file: int) -> None:
    """Wait until the file is on the disk; on macOS fsync alone leaves it in the drive's cache."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):  # not every file system has it
            fcntl.fcntl(file, full)
            return
    os.fsync(file)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
