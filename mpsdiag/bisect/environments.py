"""Environments of releases: built once by uv and kept; at a size limit the least recently used are removed."""

import contextlib
import fcntl
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from typing_extensions import Self

from mpsdiag.bisect.installer import Impossible, Installer, digits
from mpsdiag.errors import BadInput, CannotDecide, MpsdiagError, file_errors
from mpsdiag.release_environment import MARKER, Built, cache_folder, find, read
from mpsdiag.serialization import dumps, write_atomically

CELLS_NEED = ("packaging", "psutil", "pydantic")
"""What a cell of `bench` imports in addition to torch, transformers and their requirements."""
ROOM_TO_BUILD = 2**30
ROOM_TO_BUILD_AHEAD = 20 * 2**30
"""Free bytes below which nothing is built, or nothing that may turn out not to be needed."""


def cache_limit() -> int:
    """Bytes that all environments may take together, 20 GiB unless MPSDIAG_CACHE_GIB sets another limit."""
    text = os.environ.get("MPSDIAG_CACHE_GIB") or "20"
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0 < limit < 1e6:
        raise BadInput(f"MPSDIAG_CACHE_GIB is '{text}'. Set it to a number of GiB, such as 20.")
    return int(limit * 2**30)


@contextlib.contextmanager
def for_cells(names: Sequence[str]) -> Iterator[None]:
    """Prepare environments for the cells of `bench`, and keep them while the block runs.

    mpsdiag itself is linked into them, not installed: its requirements would change the releases under test.
    Raises BadInput for an unknown name, CannotDecide if packages that cells need besides torch and transformers
    cannot be fetched.
    """
    with contextlib.ExitStack() as locks:
        for name in names:
            find(name)
            locks.enter_context(_locked(cache_folder() / name, fcntl.LOCK_SH))
            _equip(cache_folder() / name)
        yield


@contextlib.contextmanager
def _locked(folder: Path, how: int) -> Iterator[int]:
    """Hold the lock of an environment, a file beside it; the system releases it when the process ends."""
    lock = os.open(folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, how)
        yield lock
    finally:
        os.close(lock)


def _equip(folder: Path) -> None:
    packages = next(folder.glob("lib/python*/site-packages"))
    link, package = packages / "mpsdiag", Path(__file__).parents[1]
    if link.resolve() != package:
        link.unlink(missing_ok=True)
        link.symlink_to(package)
    lacking = [name for name in CELLS_NEED if not any(packages.glob(f"{name}-*.dist-info"))]
    if lacking:
        python = str(folder / "bin" / "python")
        installer = Installer(python)
        try:
            installer.call("pip", "install", "--quiet", "--python", python, *installer.options, *lacking)
        except Impossible as refused:
            raise CannotDecide(
                f"{folder.name} cannot run cells, which need {', '.join(lacking)}: {refused}"
            ) from refused


@dataclass
class Environments:
    """The environments of one search, in a folder shared with other searches, up to a limit in bytes.

    A context manager: leaving it ends what is still being built.
    """

    installer: Installer
    folder: Path = field(default_factory=cache_folder)
    limit: int = field(default_factory=cache_limit)
    _workers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2), init=False)
    _ahead: dict[str, Future[None]] = field(default_factory=dict, init=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)
        self.installer.stop()
        self._workers.shutdown()

    def name(self, requirements: Sequence[str]) -> str:
        """Name of the environment with these requirements, such as `torch-2.9.0-py3.12-1a2b3c4d`."""
        python = self.installer.python_version
        basis = [sorted(requirements), python, platform.platform(), self.installer.index]
        words = requirements[0].replace("==", "-").replace("+", "-")
        return f"{words}-py{'.'.join(python.split('.')[:2])}-{digits(basis)[:8]}"

    @contextlib.contextmanager
    def using(self, requirements: Sequence[str]) -> Iterator[Built]:
        """Give an environment, built first if necessary; it is not removed while the block runs.

        Raises Impossible if these cannot be installed together, CannotDecide without a network or on a
        full disk.
        """
        name = self.name(requirements)
        self._mkdir()
        with _locked(self.folder / name, fcntl.LOCK_SH) as lock:
            built = read(self.folder / name)
            while built is None:
                self._build(name, requirements, lock)
                fcntl.flock(lock, fcntl.LOCK_SH)  # for a moment nobody holds it, so it may be removed
                built = read(self.folder / name)
            os.utime(self.folder / name / MARKER)
            yield built

    def build_ahead(self, requirements: Sequence[str]) -> None:
        """Start building an environment in the background; a failure shows when it is used."""
        name = self.name(requirements)
        self._mkdir()
        if name not in self._ahead and shutil.disk_usage(self.folder).free > ROOM_TO_BUILD_AHEAD:
            self._ahead[name] = self._workers.submit(self._try_build, requirements)

    def _try_build(self, requirements: Sequence[str]) -> None:
        with contextlib.suppress(MpsdiagError), self.using(requirements):
            pass  # `using` meets the same failure again and reports it

    def _build(self, name: str, requirements: Sequence[str], lock: int) -> None:
        fcntl.flock(lock, fcntl.LOCK_UN)
        fcntl.flock(lock, fcntl.LOCK_EX)  # waits for a build that is under way, also one of a killed process
        folder = self.folder / name
        if read(folder) is not None:
            return
        if shutil.disk_usage(self.folder).free < ROOM_TO_BUILD:
            raise CannotDecide(f"Less than 1 GiB is free at {self.folder}. Free some space and repeat.")
        try:
            overridden, freeze = self._install(folder, requirements, lock)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        built = Built(
            name=name,
            python=self.installer.python_version,
            requirements=tuple(requirements),
            overridden=overridden,
            freeze=tuple(freeze),
        )
        write_atomically(folder / MARKER, dumps(built.model_dump()))
        self._make_room(name)

    def _install(self, folder: Path, requirements: Sequence[str], lock: int) -> tuple[bool, list[str]]:
        try:
            return False, self.installer.install(folder, requirements, override=False, keep=lock)
        except Impossible as refused:
            if not refused.conflict:
                raise
            try:
                return True, self.installer.install(folder, requirements, override=True, keep=lock)
            except Impossible:
                raise refused from None  # the first sentence names the conflict

    def _make_room(self, kept: str) -> None:
        """Remove the least recently used environments until the rest is below the limit."""
        for marker in sorted(self.folder.glob(f"*/{MARKER}"), key=lambda path: path.stat().st_mtime):
            if _bytes(self.folder) <= self.limit:
                return
            if marker.parent.name == kept:
                continue
            in_use = contextlib.suppress(BlockingIOError)
            with in_use, _locked(marker.parent, fcntl.LOCK_EX | fcntl.LOCK_NB):
                marker.unlink()  # first: what is half removed is not there
                shutil.rmtree(marker.parent, ignore_errors=True)

    def _mkdir(self) -> None:
        with file_errors(f"Cannot write {self.folder}", "Set MPSDIAG_CACHE to a folder you may write to."):
            self.folder.mkdir(parents=True, exist_ok=True)


def _bytes(folder: Path) -> int:
    """Bytes below a folder; files that environments share by hard links count once."""
    sizes: dict[int, int] = {}
    for parent, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(parent, file))  # noqa: PTH118 - a hundred thousand of them
                sizes[status.st_ino] = status.st_size
    return sum(sizes.values())
