"""What the emulation does where the real thing ends the whole process."""

from __future__ import annotations

import os
import sys
from typing import Literal, NoReturn

OnAbort = Literal["raise", "process"]


class EmulatedAbort(RuntimeError):  # noqa: N818 - it stands for an abort, which is no exception
    """On the emulated release this call would have ended the process (SIGABRT)."""


def abort(message: str, on_abort: OnAbort) -> NoReturn:
    """End the process as the emulated release would, or raise.

    Args:
        message: What the real thing prints, roughly.
        on_abort: `process` really aborts (for children that are watched), `raise` raises.

    Raises:
        EmulatedAbort: With `on_abort="raise"`.
    """
    if on_abort == "process":
        sys.stderr.write(f"emulated abort: {message}\n")
        sys.stderr.flush()
        os.abort()
    raise EmulatedAbort(f"{message} (on a real MPS device this ends the process)")
