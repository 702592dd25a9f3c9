"""The request of `mpsdiag run` to the processes it starts, written into their environment and read back here."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parent / "on_startup"
_FIX: Final = "MPSDIAG_RUN_FIX"
_EMULATE: Final = "MPSDIAG_RUN_EMULATE"
_MACOS: Final = "MPSDIAG_RUN_EMULATE_MACOS"
_THEN: Final = "MPSDIAG_RUN_THEN"


@dataclass(frozen=True)
class RunRequest:
    """The fixes and, if `emulate` is set, the MPS kernels to install as soon as torch is imported.

    `then` names a function of a later room, as `module:function`, which is called last; it reads `options`, further
    entries of the environment.
    """

    fixes: tuple[str, ...]
    emulate: str | None = None
    macos: int = 15
    then: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment of a process with the request, and the start-up hook on PYTHONPATH."""
        extended = {key: value for key, value in environ.items() if key not in {_FIX, _EMULATE, _MACOS, _THEN}}
        extended |= {_FIX: ",".join(self.fixes), **self.options}
        if self.then is not None:
            extended[_THEN] = self.then
        if self.emulate is not None:
            extended[_EMULATE] = self.emulate
            extended[_MACOS] = str(self.macos)
        # An empty entry would mean the current folder: none is added, the user's own ones stay.
        rest = environ.get("PYTHONPATH", "")
        others = [entry for entry in rest.split(os.pathsep) if entry != str(FOLDER)] if rest else []
        extended["PYTHONPATH"] = os.pathsep.join([str(FOLDER), *others])
        return extended


def wish_of(environ: Mapping[str, str]) -> RunRequest | None:
    """The request in an environment; None if there is none."""
    if _FIX not in environ:
        return None
    fixes = tuple(environ[_FIX].split(","))
    return RunRequest(fixes, environ.get(_EMULATE), int(environ.get(_MACOS, "15")), environ.get(_THEN))


def begin() -> None:
    """Carry out the request in this process, for its whole life, right after torch has been imported.

    The emulation applies to the thread that imported torch, and to processes forked from it. If the request cannot
    be carried out, the import of torch fails, so that the script does not run without it.
    """
    wish = wish_of(os.environ)
    if wish is None:
        return
    if wish.emulate is not None:
        from mpsdiag.emulation.mode import emulate_mps

        emulate_mps(wish.emulate, wish.macos).__enter__()
    from mpsdiag.fixes.process import install

    for fix in wish.fixes:
        install(fix)
    if wish.then is not None:
        module, _, function = wish.then.partition(":")
        getattr(import_module(module), function)()
