"""What `mpsdiag run` asks of the processes it starts: written into their environment here, and read back here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parent / "on_startup"
_FIX: Final = "MPSDIAG_RUN_FIX"
_EMULATE: Final = "MPSDIAG_RUN_EMULATE"
_MACOS: Final = "MPSDIAG_RUN_EMULATE_MACOS"


@dataclass(frozen=True)
class RunRequest:
    """What is to be in place once torch is there.

    Attributes:
        fix: An attention mode.
        emulate: The torch release whose MPS kernels are emulated on CPU tensors, or None.
        macos: The macOS under it.
    """

    fix: str
    emulate: str | None = None
    macos: int = 15

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Add the wish, and the folder with the start-up hook, to the environment of a process."""
        extended = {key: value for key, value in environ.items() if key not in {_FIX, _EMULATE, _MACOS}}
        extended[_FIX] = self.fix
        if self.emulate is not None:
            extended[_EMULATE] = self.emulate
            extended[_MACOS] = str(self.macos)
        # An empty entry would mean the current folder: none is added, those of the user stay.
        rest = environ.get("PYTHONPATH", "")
        others = [entry for entry in rest.split(os.pathsep) if entry != str(FOLDER)] if rest else []
        extended["PYTHONPATH"] = os.pathsep.join([str(FOLDER), *others])
        return extended


def wish_of(environ: Mapping[str, str]) -> RunRequest | None:
    """Read the wish back; None if there is none."""
    if _FIX not in environ:
        return None
    return RunRequest(environ[_FIX], environ.get(_EMULATE), int(environ.get(_MACOS, "15")))


def begin() -> None:
    """Fulfil the wish of this process, for as long as it lives. Called right after torch has been imported.

    The emulation is that of the thread that imported torch, and of processes forked from it.

    Raises:
        MpsdiagError: The wish cannot be fulfilled; the import of torch fails with it, rather than that the script
            runs without what was asked for.
    """
    wish = wish_of(os.environ)
    if wish is None:
        return
    if wish.emulate is not None:
        from mpsdiag.emulation import emulate_mps

        emulate_mps(wish.emulate, wish.macos).__enter__()
    from mpsdiag.fixes.process import install

    install(wish.fix)
