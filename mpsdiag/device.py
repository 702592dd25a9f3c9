"""Resolve a device and work with it. The only place that distinguishes mps, cuda, xpu and cpu."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpsdiag.errors import BadInput, CannotDecide, first_line, one_of
from mpsdiag.words import DTYPES

if TYPE_CHECKING:
    import torch

AUTO_ORDER = ("mps", "cuda", "xpu", "cpu")
CHILD_SECONDS = 120

_NAME = re.compile(r"(cpu|mps|cuda|xpu)(:\d+)?")
# Allocates, adds, synchronizes, in its own process: a broken Metal aborts instead of raising.
_CHILD = (
    "import torch; x = torch.ones(8, device='mps'); y = (x + 1).sum(); torch.mps.synchronize(); "
    "assert y.item() == 16.0, y.item(); print('usable')"
)


@dataclass(frozen=True)
class Usability:
    """Whether a device does real work here; if not, `reason` is why."""

    ok: bool
    reason: str = ""


def resolve(name: str) -> str:
    """Turn a device name into the name of one device; `auto` takes the first available of mps, cuda, xpu, cpu."""
    if name == "auto":
        return next(kind for kind in AUTO_ORDER if available(kind))
    if not _NAME.fullmatch(name) or name.startswith(("cpu:", "mps:")):
        one_of("device", name, ("auto", "cpu", "mps", "cuda", "cuda:N", "xpu"))
        raise BadInput(f"Device '{name}' needs a number: cuda:0, not cuda:N.")
    return name


def kind_of(device: str | torch.device) -> str:
    """The kind of a device: cpu, mps, cuda or xpu."""
    return str(device).partition(":")[0]


def available(kind: str) -> bool:
    """Whether torch sees a device of this kind; it may still refuse to work."""
    import torch

    if kind == "cpu":
        return True
    if kind == "mps":
        return bool(torch.backends.mps.is_available())
    module = getattr(torch, kind, None)
    return module is not None and bool(module.is_available())


def usable(device: str) -> Usability:
    """Allocate, add and synchronize on the device; for mps in a child process, since Metal may abort.

    Virtual machines show an MPS device that refuses every allocation (actions/runner-images#9918).
    """
    import torch

    kind = kind_of(device)
    if not available(kind):
        return Usability(ok=False, reason=_absent(kind))
    if kind == "mps":
        return _usable_in_child()
    try:
        total = (torch.ones(8, device=device) + 1).sum()
        synchronize(device)
        if total.item() != 16.0:
            return Usability(ok=False, reason=f"{device} adds incorrectly: got {total.item()}, expected 16.0")
    except (RuntimeError, AssertionError) as problem:
        return Usability(ok=False, reason=f"{device} refuses work: {first_line(problem, 300)}")
    return Usability(ok=True)


def require_usable(device: str) -> None:
    """Raise CannotDecide, with the reason, if the device does not work."""
    state = usable(device)
    if not state.ok:
        raise CannotDecide(f"Device '{device}' cannot be used here: {state.reason}.")


def accelerators(*, probe: bool = True) -> dict[str, bool | str | None]:
    """What torch was built with, shows, and (with `probe`) can really use; fields of `Environment`."""
    import torch

    built, there = bool(torch.backends.mps.is_built()), available("mps")
    state = usable("mps") if probe and there else Usability(ok=False, reason="")
    return {
        "mps_built": built,
        "mps_available": there,
        "mps_usable": state.ok if probe else None,
        "mps_note": state.reason or None,
        "cuda": torch.cuda.get_device_name(0) if available("cuda") else None,
    }


def synchronize(device: str | torch.device) -> None:
    """Wait until the device has finished its work; the CPU always has."""
    module = _module(device)
    if module is not None:
        module.synchronize()


def current_memory(device: str | torch.device) -> int | None:
    """Bytes of device memory in use by this process; None on the CPU."""
    return _memory(device, "memory_allocated")


def peak_memory(device: str | torch.device) -> int | None:
    """Highest number of bytes of device memory since `reset_peak_memory`; MPS: its current use."""
    return _memory(device, "max_memory_allocated")


def _memory(device: str | torch.device, name: str) -> int | None:
    module = _module(device)
    if module is None:
        return None
    return int(getattr(module, "driver_allocated_memory" if kind_of(device) == "mps" else name)())


def reset_peak_memory(device: str | torch.device) -> None:
    """Reset the peak if the device keeps one."""
    module = _module(device)
    if module is not None and hasattr(module, "reset_peak_memory_stats"):
        module.reset_peak_memory_stats()


def process_peak_memory() -> int:
    """Highest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # On Linux ru_maxrss starts at the size of the parent that started this process.
        found = re.search(r"^VmHWM:\s*(\d+)", status.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy (where loaded) and torch on every device."""
    import random

    import torch

    random.seed(seed)
    torch.manual_seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of this name, one of those that mpsdiag supports."""
    import torch

    return getattr(torch, one_of("dtype", name, DTYPES))  # type: ignore[no-any-return]  # checked by name


def supports_dtype(device: str, name: str) -> str | None:
    """Why the device cannot compute in this dtype, or None if it can. Tried, not assumed."""
    import torch

    dtype = torch_dtype(name)
    try:
        square = torch.ones(2, 2, dtype=dtype, device=device)
        (square @ square).sum().item()
    except (RuntimeError, TypeError, AssertionError) as problem:
        return f"{device} does not compute in {name}: {first_line(problem, 300)}"
    return None


def _module(device: str | torch.device) -> Any:
    import torch

    kind = kind_of(device)
    return None if kind == "cpu" else getattr(torch, kind)


def _absent(kind: str) -> str:
    import torch

    if kind != "mps":
        return f"torch {torch.__version__} sees no {kind} device"
    if not torch.backends.mps.is_built():
        return f"torch {torch.__version__} was built without MPS (it needs the macOS build on Apple Silicon)"
    return "torch has MPS built in but sees no Apple GPU (it needs Apple Silicon and macOS 14 or newer)"


def _usable_in_child() -> Usability:
    try:
        child = subprocess.run(
            [sys.executable, "-c", _CHILD], capture_output=True, text=True, timeout=CHILD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Usability(ok=False, reason=f"mps did not answer within {CHILD_SECONDS} s")
    if child.returncode == 0 and "usable" in child.stdout:
        return Usability(ok=True)
    last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
    return Usability(
        ok=False, reason=f"mps is visible but refuses work (a virtual machine or a sandbox?): {last[:300]}"
    )
