"""Checkpoints: which are complete, which to resume from, and no Ctrl-C while one is being written."""

import contextlib
import functools
import json
import logging
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from mpsdiag.errors import BadInput
from mpsdiag.serialization import read_file, require_files

logger = logging.getLogger(__name__)

LATEST: Final = "latest"
_NAME: Final = re.compile(r"checkpoint-(\d+)")
_WEIGHTS: Final = ("model.safetensors", "adapter_model.safetensors")
_INDEX: Final = "model.safetensors.index.json"


def what_is_missing(folder: Path) -> str | None:
    """Why a folder is not a checkpoint to resume from; None if it is complete.

    The Trainer writes `trainer_state.json` last, so a save that was killed has none, or half of one. Weights are
    checked against the lengths in their headers.
    """
    if not folder.is_dir():
        return "it does not exist" if not folder.exists() else "it is not a folder"
    try:
        step = json.loads(read_file(folder / "trainer_state.json")).get("global_step")
    except OSError:
        return "it has no trainer_state.json"
    except (ValueError, AttributeError):
        return "its trainer_state.json is damaged"
    if not isinstance(step, int):
        return "its trainer_state.json names no step"
    require_files(folder)
    files = _weight_files(folder)
    if not files:
        return "it has no weights (model.safetensors)"
    for file in files:
        if not _is_whole(file):
            return f"its {file.name} is missing or cut short"
    for name in ("optimizer.pt", "scheduler.pt"):
        if not (folder / name).is_file():
            return f"it has no {name}"
    return None


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.is_file():
        with contextlib.suppress(ValueError, KeyError, AttributeError):
            named = json.loads(read_file(index))["weight_map"].values()
            return [folder / name for name in sorted(set(named))]
        return []
    return [folder / name for name in _WEIGHTS if (folder / name).is_file()]


def _is_whole(file: Path) -> bool:
    """Open a safetensors file: opening compares its length with its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False


def last_whole(output_dir: Path) -> Path | None:
    """The complete checkpoint of the highest step in a folder; incomplete ones are named and skipped."""
    folders = (path for path in output_dir.glob("checkpoint-*") if path.is_dir())
    found = [(int(match[1]), path) for path in folders if (match := _NAME.fullmatch(path.name))]
    for _, path in sorted(found, reverse=True):
        missing = what_is_missing(path)
        if missing is None:
            return path
        logger.warning("Checkpoint '%s' is skipped: %s.", path, missing)
    return None


def to_resume_from(wanted: str | None, output_dir: Path) -> Path | None:
    """Resolve `--resume_from_checkpoint`: a complete checkpoint, or None to start from the beginning."""
    if not wanted:
        if last_whole(output_dir) is not None:
            logger.warning(
                "'%s' holds checkpoints of an earlier run, and this one begins at the beginning. "
                "Add --resume_from_checkpoint latest to go on from the last of them.",
                output_dir,
            )
        return None
    if wanted == LATEST:
        found = last_whole(output_dir)
        if found is None:
            logger.warning("There is no complete checkpoint in '%s' yet: starting from the beginning.", output_dir)
        return found
    folder = Path(wanted).expanduser()
    missing = what_is_missing(folder)
    if missing is not None:
        raise BadInput(
            f"'{wanted}' is not a checkpoint to resume from: {missing}. "
            "Give a folder checkpoint-N that the Trainer wrote, or latest."
        )
    return folder


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Let a Ctrl-C during this block take effect at its end. Does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def save_undisturbed(trainer: Any) -> None:
    """Make a Trainer finish writing a checkpoint before a Ctrl-C takes effect."""
    save: Callable[..., Any] | None = getattr(trainer, "_save_checkpoint", None)
    if save is None:  # Private to transformers; without it an incomplete checkpoint is skipped when resuming.
        return

    @functools.wraps(save)
    def undisturbed(*args: Any, **kwargs: Any) -> Any:
        with interrupts_deferred():
            return save(*args, **kwargs)

    trainer._save_checkpoint = undisturbed  # noqa: SLF001 - see above
