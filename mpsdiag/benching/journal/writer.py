"""Writing a journal: complete lines, on disk before the next cell starts, by one process at a time."""

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel
from typing_extensions import Self

from mpsdiag.benching.journal.journal import loads
from mpsdiag.errors import BadInput, CannotDecide, file_errors
from mpsdiag.serialization import dumps, require_file, write_atomically


class JournalFull(CannotDecide):
    """The journal can no longer be written. Everything finished is safe; the run stops. Exit code 3."""


class JournalWriter:
    """Appends records to a journal, of cells or of another kind of line; a context manager that holds its lock.

    A new journal is created with its header, completely or not at all. An existing one keeps its header; a torn last
    line is cut off first, so that the next record starts on its own line. Every line is kept in memory and is written
    again, whatever happens to the file in the meantime (an editor, a sync tool, `rm`).

    Raises BadInput if another process writes this journal, or the folder cannot be written.
    """

    def __init__(self, path: Path, header: BaseModel, note: Callable[[str], None] = lambda _: None) -> None:
        self.path = path
        self._note = note
        self._lock = _lock(path)
        try:
            with file_errors(f"Cannot write {path}"):
                require_file(path)
                if not path.exists() or path.stat().st_size == 0:
                    write_atomically(path, dumps(header.model_dump(by_alias=True)) + "\n")
                    _sync_folder(path.parent)
                self._file = os.open(path, os.O_RDWR | os.O_APPEND)
        except BaseException:
            os.close(self._lock)
            raise
        self._lines = _mend(self._file)
        self._seen = _fingerprint(os.fstat(self._file))

    @property
    def data(self) -> bytes:
        """The whole journal as known here, whatever happened to the file."""
        return bytes(self._lines)

    def append(self, record: BaseModel) -> None:
        """Write a record as one line and wait until it is on disk.

        Raises JournalFull if the line could not be written completely; nothing of it is left in the file.
        """
        line = (dumps(record.model_dump(by_alias=True)) + "\n").encode("utf-8", errors="replace")
        self.check()
        try:
            written = os.write(self._file, line)
            while written < len(line):
                written += os.write(self._file, line[written:])
            _sync(self._file)
        except OSError as problem:
            os.ftruncate(self._file, len(self._lines))
            self._seen = _fingerprint(os.fstat(self._file))
            raise JournalFull(
                f"Cannot write {self.path}: {problem.strerror}. All cells finished before are safe "
                "in it. Free some space and run the same command again: it resumes."
            ) from problem
        self._lines += line
        self._seen = _fingerprint(os.fstat(self._file))

    def check(self) -> None:
        """Compare the file with what was written, and write it again if it was deleted, replaced, cut or edited.

        Raises JournalFull if it cannot be written again.
        """
        try:
            state = self.path.stat()
            if _fingerprint(state) == self._seen:
                return
            same = stat.S_ISREG(state.st_mode) and self.path.read_bytes() == self._lines
        except OSError:
            same = False
        try:
            if not same:
                self._restore()
            file = os.open(self.path, os.O_RDWR | os.O_APPEND)
        except (OSError, BadInput) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else problem
            raise JournalFull(
                f"{self.path} was changed or deleted by another program, and cannot be written again ({reason}). "
                "Restore the folder and run the same command again."
            ) from problem
        os.close(self._file)
        self._file, self._seen = file, _fingerprint(os.fstat(file))

    def _restore(self) -> None:
        """Restore the journal, and its lock if that is gone too; whatever is in its place is kept aside."""
        kept = None
        if self.path.exists() or self.path.is_symlink():
            kept = _free_name(self.path)
            self.path.rename(kept)
        write_atomically(self.path, self._lines.decode("utf-8", "replace"))
        _sync_folder(self.path.parent)
        if not _lock_path(self.path).exists():
            old, self._lock = self._lock, _lock(self.path)
            os.close(old)
        found = "was deleted" if kept is None else f"was changed by another program (that file is kept as {kept})"
        self._note(f"{self.path} {found}; every line is written again")

    def close(self) -> None:
        """Close the journal and let others write it."""
        os.close(self._file)
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def set_aside(path: Path) -> Path | None:
    """Rename a journal to `journal.1.jsonl` (the first free number) beside it; None if there is none.

    Raises BadInput if another process writes it.
    """
    if not path.exists():
        return None
    lock = _lock(path)
    try:
        with file_errors(f"Cannot set {path} aside", "Choose another folder with --out."):
            kept = _free_name(path)
            path.rename(kept)
    finally:
        os.close(lock)
    return kept


def _free_name(path: Path) -> Path:
    """`journal.1.jsonl` for `journal.jsonl`, or the first number that is free."""
    number = 1
    while (kept := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    return kept


def _fingerprint(state: os.stat_result) -> tuple[int, ...]:
    """What stays the same while no other program touches a file."""
    return state.st_dev, state.st_ino, state.st_nlink, state.st_size, state.st_mtime_ns


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _lock(path: Path) -> int:
    """Lock a journal through a file beside it; the system releases it when the process ends, however it ends."""
    with file_errors(f"Cannot write into {path.parent}", "Choose another folder with --out."):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Links are not followed: others who can write into the folder must not redirect the writing.
        lock = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise BadInput(
            f"Another mpsdiag (process {owner}) is writing {path}. Wait for it, or choose another folder with --out."
        ) from problem
    with contextlib.suppress(OSError):  # the process number is only for the sentence above
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _mend(file: int) -> bytearray:
    """Cut off a torn last line, or add a missing line feed; the whole content afterwards."""
    data = bytearray(os.pread(file, os.fstat(file).st_size, 0))
    if data.endswith(b"\n"):
        return data
    start = data.rfind(b"\n") + 1
    try:
        if start:
            loads(bytes(data[start:]))  # a part of an object is not JSON
    except ValueError:
        os.ftruncate(file, start)
        return data[:start]
    os.write(file, b"\n")
    return data + b"\n"


def _sync(file: int) -> None:
    """Wait until the file is on disk; on macOS fsync alone leaves it in the drive's cache."""
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
