"""The attention modes by name: what each does, whether it is exact, where it cannot run, and how it is removed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Final

from mpsdiag.errors import one_of
from mpsdiag.words import ATTENTION_MODES, POSITIONS, is_kernel

if TYPE_CHECKING:
    from mpsdiag.fixes.repairs import Function, Repair

_COMPILERS = ("c++", "g++", "clang++", "cl")


@dataclass(frozen=True)
class Mode:
    """One way to compute attention.

    `exact` modes give the result of stock SDPA on the CPU, bit for bit. `install` accepts those that are
    `process_wide`; the others are for one model.
    """

    name: str
    exact: bool
    summary: str
    process_wide: bool = True
    _reason: Callable[[str, str, bool], str | None] | None = field(default=None, repr=False, compare=False)

    def unavailable(self, device: str, dtype: str, *, training: bool = True) -> str | None:
        """Why the mode cannot run on a device and dtype, with gradients if `training`; None if it can."""
        return self._reason(device.partition(":")[0], dtype, training) if self._reason else None

    def repair(self) -> Repair | None:
        """What the mode does to the mask before SDPA, or None if it does something else."""
        from mpsdiag.fixes.repairs import REPAIRS

        return REPAIRS.get(self.name)

    def instead(self) -> Function | None:
        """What the mode runs instead of `F.scaled_dot_product_attention`, if anything."""
        from mpsdiag.fixes.repairs import eager

        return eager if self.name == "eager" else None


def _flex(device: str, dtype: str, training: bool) -> str | None:
    """Asked of torch itself, not of its version."""
    if device != "cuda" and dtype == "float64":
        return f"flex_attention does not compute in float64 on {device}"
    try:
        from torch.nn.attention import flex_attention as flex
    except ImportError:
        return "flex_attention needs torch 2.5 or later"
    validate = getattr(flex, "_validate_device", None)
    if validate is None and device != "cuda":
        return f"flex_attention of this torch runs on CUDA only, not on {device}"
    if validate is not None:
        # torch's own check reads the device and whether a gradient is wanted, no more: no device is touched.
        tensor = SimpleNamespace(device=SimpleNamespace(type=device), requires_grad=training)
        try:
            validate(tensor, tensor, tensor)
        except (NotImplementedError, ValueError) as refusal:
            return f"flex_attention cannot {'train' if training else 'run'} on {device}: {refusal}"
    if device == "cpu" and training:  # Of a torch that does not refuse it: 2.7 breaks in its compiler.
        return "flex_attention cannot train on cpu: torch compiles its forward there, and no backward"
    if device == "cpu" and not (os.environ.get("CXX") or any(map(shutil.which, _COMPILERS))):
        return "flex_attention is compiled on the CPU, and no C++ compiler was found (install g++ or clang++)"
    return None


def _flash(device: str, dtype: str, training: bool) -> str | None:
    del training
    if device not in {"cuda", "xpu"}:
        return f"flash_attention_2 needs a CUDA or XPU device, not {device}"
    if dtype not in {"float16", "bfloat16"}:
        return f"flash_attention_2 computes in float16 or bfloat16, not in {dtype}"
    if importlib.util.find_spec("flash_attn") is None:
        return "flash_attention_2 needs the package flash_attn, which is not installed (pip install flash-attn)"
    return None


def _kernel(device: str, dtype: str, training: bool) -> str | None:
    """Only the hub knows where a kernel runs; here only whether transformers can load kernels is tested."""
    del device, dtype, training
    from transformers.utils import import_utils

    if import_utils.is_kernels_available():
        return None
    least = getattr(import_utils, "KERNELS_MIN_VERSION", None)
    return f"hub kernels need the package kernels (pip install kernels{f'=={least}' if least else ''})"


_ALL = (
    Mode("sdpa", True, "Stock F.scaled_dot_product_attention."),
    Mode(
        "eager",
        False,
        "Plain matmul and softmax; masked scores are finfo.min, so a fully masked row averages all values.",
    ),
    Mode(
        "safe_sdpa",
        True,
        "SDPA with fully masked rows unmasked before and zeroed after: the result of the CPU, bit for bit.",
    ),
    Mode(
        "unmask_sdpa",
        False,
        "SDPA with fully masked rows unmasked, as in transformers up to 4.52: padding sees all tokens.",
    ),
    Mode("min_mask_sdpa", False, "SDPA with a float mask of finfo.min instead of minus infinity."),
    Mode("flex_attention", False, "The compiled flex_attention of torch.", False, _flex),
    Mode("flash_attention_2", False, "The flash-attn package; padding is cut out.", False, _flash),
)
MODES: Final[Mapping[str, Mode]] = MappingProxyType(
    {mode.name: mode for mode in sorted(_ALL, key=lambda mode: ATTENTION_MODES.index(mode.name))}
)


def mode_named(name: str, *, process_wide: bool = False) -> Mode:
    """Look up a mode; the error for an unknown name suggests the nearest."""
    if is_kernel(name):
        return Mode(name, False, "A hub kernel, loaded by the package kernels.", False, _kernel)
    if name not in MODES:
        fitting = [word for word, mode in MODES.items() if mode.process_wide or not process_wide]
        one_of("attention mode", name, [*fitting, POSITIONS] if process_wide else fitting)
    return MODES[name]


class Handle:
    """Removes a mode by `remove()` or at the end of a `with` block.

    `name` is the attention mode that was installed. `unreached` lists names in modules, such as
    `library.attention.sdpa`, that were bound to torch's own function before and so do not use the mode.
    """

    def __init__(self, name: str, undo: Callable[[], None], unreached: tuple[str, ...] = ()) -> None:
        self.name = name
        self.unreached = unreached
        self._undo: Callable[[], None] | None = undo
        self._lock = threading.Lock()

    @property
    def removed(self) -> bool:
        """Whether `remove()` has been called."""
        return self._undo is None

    def remove(self) -> None:
        """Restore the previous state. Calling it again does nothing."""
        with self._lock:
            undo, self._undo = self._undo, None
        if undo is not None:
            undo()

    def __enter__(self) -> Handle:  # noqa: PYI034 - Self is not in the typing of Python 3.10
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<Handle of {self.name}, {'removed' if self.removed else 'in place'}>"
