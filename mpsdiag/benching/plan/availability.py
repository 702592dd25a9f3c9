"""Which cells cannot run on this machine, and why: asked of the device, the dtype and the attention mode."""

from __future__ import annotations

import functools

from mpsdiag.scenario.scenario import Scenario


def unavailable(cell: Scenario) -> str | None:
    """Why a cell cannot run here, or None if it can."""
    if cell.emulate is not None and cell.device != "cpu":
        return f"the emulation is of MPS on the CPU; it cannot run on {cell.device}"
    return (
        _emulated_dtype(cell) or _device(cell.device) or _dtype(cell.device, cell.dtype) or _attention(cell)
    )


def _emulated_dtype(cell: Scenario) -> str | None:
    if cell.emulate is None:
        return None
    from mpsdiag.emulation import Emulation

    return Emulation(cell.emulate).lacks_dtype(cell.dtype)


@functools.cache
def _device(device: str) -> str | None:
    if device == "cpu":
        return None
    from mpsdiag.device import usable

    state = usable(device)
    return None if state.ok else state.reason


@functools.cache
def _dtype(device: str, dtype: str) -> str | None:
    if device == "cpu":  # every dtype of ours computes there; asking would cost an import of torch
        return None
    from mpsdiag.device import supports_dtype

    return supports_dtype(device, dtype)


def _attention(cell: Scenario) -> str | None:
    if cell.attn_implementation in {"sdpa", "eager"}:
        return None
    from mpsdiag.fixes import MODES

    return MODES[cell.attn_implementation].unavailable(cell.device, cell.dtype, training=cell.max_steps > 0)
