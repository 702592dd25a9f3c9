"""The checkpoint since which a weight is non-finite, read from safetensors files one tensor at a time."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mpsdiag.errors import BadInput

_NUMBER = re.compile(r"(\d+)$")


def find_checkpoints(paths: Sequence[Path]) -> list[Path]:
    """Folders with safetensors weights, the oldest first; a folder that contains `checkpoint-N` stands for these."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise BadInput(
                f"There is no folder {path}. Give checkpoints, or the folder into which a Trainer wrote them."
            )
        inner = sorted((folder for folder in path.iterdir() if folder.is_dir() and _weights(folder)), key=_step)
        here = [path] if _weights(path) else []
        if not inner and not here:
            pickled = any(path.rglob("*.bin")) or any(path.rglob("*.pt"))
            why = " Its weights are pickles, which are refused: loading them can run code." if pickled else ""
            raise BadInput(f"{path} holds no checkpoint with safetensors weights.{why}")
        found += [*inner, *here]
    return found


def bad_since(checkpoints: Sequence[Path], names: Sequence[str]) -> dict[str, Any]:
    """The first checkpoint with a non-finite tensor among these (None: all are finite), and the last one before it."""
    found: dict[str, Any] = {"bad_since": None, "last_finite": None, "tensor": None}
    found["checkpoints"] = len(checkpoints)
    for folder in checkpoints:
        bad = _first_bad(folder, set(names))
        if bad is not None:
            return {**found, "bad_since": folder.name, "tensor": bad}
        found["last_finite"] = folder.name
    return found


def _first_bad(folder: Path, names: set[str]) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        for path in _weights(folder):
            with safe_open(path, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 - no mapping
                    if names and name not in names:
                        continue
                    tensor = stored.get_tensor(name)
                    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                        return str(name)
    except (SafetensorError, OSError) as problem:
        raise BadInput(f"The checkpoint {folder} cannot be read: {problem}.") from problem
    return None


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _step(folder: Path) -> tuple[int, str]:
    found = _NUMBER.search(folder.name)
    return (int(found[1]) if found else 0), folder.name
