"""The messages of a run on stderr, and its output folder, which is tested before the work begins."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mpsdiag.errors import BadInput, file_errors
from mpsdiag.escape import one_line, terminal_text
from mpsdiag.serialization import readable

USING_SAFE_TRAINER: Final = "Using MPSSafeTrainer for MPS device (prevents NaN eval loss)"
USING_STANDARD_TRAINER: Final = "Using standard HuggingFace Trainer"
FIX_DISABLED: Final = (
    "⚠️  WARNING: MPS device detected but MPS fix disabled via --disable_mps_fix\n"
    "    You may experience NaN eval_loss during evaluation.\n"
    "    To enable the fix, remove the --disable_mps_fix flag."
)


def require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written, before an hour of training."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as problem:
        # A locale without these letters passes them on as surrogates. Python can write there; the libraries cannot.
        raise BadInput(
            f"Cannot write into '{readable(str(folder))}': this locale lacks its letters. Set LC_ALL=C.UTF-8 or "
            "PYTHONUTF8=1, or choose an --output_dir in ASCII."
        ) from problem
    probe = folder / ".mpsdiag-write-test"
    with file_errors(f"Cannot write into '{folder}'", "Choose an --output_dir you may write to."):
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()


def say(text: str) -> None:
    """Write one message for people, immediately."""
    sys.stderr.write(terminal_text(text) + "\n")
    sys.stderr.flush()


class _OneLine(logging.Formatter):
    """Keeps names of files, columns and options in messages from controlling the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record), 1000)


@contextlib.contextmanager
def messages_on_stderr() -> Iterator[None]:
    """Show mpsdiag's own log on stderr while the pipeline runs."""
    house = logging.getLogger("mpsdiag")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(levelname)s: %(message)s"))
    house.addHandler(handler)
    propagate, house.propagate = house.propagate, False
    try:
        yield
    finally:
        house.removeHandler(handler)
        house.propagate = propagate


def emulation_announcement(emulated: str) -> str:
    """The first line of a run under emulation, whose later messages are those of an MPS device."""
    what = emulated.removeprefix("emulated ")
    return (
        f"EMULATED {what} (on the CPU): nothing here was measured on MPS. In the messages below, MPS means the "
        "emulated device."
    )


def switched_to_eager(device: str) -> str:
    """The warning that attention has been switched: why, what is better, and how to silence it."""
    return (
        f"⚠️  WARNING: attention switched from sdpa to eager on {device}\n"
        "    The fused attention kernels of several torch releases return NaN or wrong numbers on MPS for query rows\n"
        "    that may attend to no key, which every padded batch has.\n"
        "    Exact, and without the memory of eager: --attn_implementation safe_sdpa\n"
        "    To silence this warning: --attn_implementation eager (or --disable_mps_fix, which keeps sdpa as it is)."
    )


def trainer_announcement(*, on_mps: bool, fix_disabled: bool) -> str:
    """The message about the choice of the Trainer."""
    if not on_mps:
        return USING_STANDARD_TRAINER
    return f"{FIX_DISABLED}\n{USING_STANDARD_TRAINER}" if fix_disabled else USING_SAFE_TRAINER
