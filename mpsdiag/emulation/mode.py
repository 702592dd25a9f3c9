"""The context in which CPU tensors behave as on MPS, and queries for code inside it."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from typing_extensions import Self

from mpsdiag.emulation import reentry
from mpsdiag.emulation.call import operator_call, public_call
from mpsdiag.emulation.faults import BADDBMM, baddbmm_reading_its_input
from mpsdiag.emulation.operator import attention, run_operator
from mpsdiag.emulation.selection import Emulation, Machine, OnAbort


class _Thread(threading.local):
    """The emulations in effect on this thread, innermost last; None means suspended."""

    def __init__(self) -> None:
        self.stack: list[EmulatedMPS | None] = []


_thread = _Thread()


class EmulatedMPS(TorchFunctionMode):
    """Context manager: attention on CPU tensors goes to an emulated machine, which is new for each context.

    The machine with its memory lasts as long as this object.
    """

    def __init__(self, emulation: Emulation, *, on_abort: OnAbort = "raise") -> None:
        super().__init__()
        self.emulation = emulation
        self.machine = Machine.of(emulation, on_abort)

    def __enter__(self) -> Self:
        _thread.stack.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]  # in torch
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]  # in torch
        _thread.stack.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Handle the intercepted functions if this is the innermost emulation; pass on everything else."""
        kwargs = kwargs or {}
        if not _thread.stack or _thread.stack[-1] is not self:
            return func(*args, **kwargs)
        if func in reentry.RUNNING:
            with reentry.kept_through(self):
                return func(*args, **kwargs)
        if reentry.calls_attention(func):
            return reentry.with_mode(self, func, args, kwargs)
        answer = _INTERCEPTED.get(func)
        if answer is None:
            return func(*args, **kwargs)
        given = (*args, *kwargs.values())
        if types or any(isinstance(x, torch.Tensor) and type(x) not in _PLAIN for x in given):
            return self._as_stock(func, types, args, kwargs)
        with suspended():
            return answer(self.machine, func, args, kwargs)

    def _as_stock(self, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let arguments that override torch's functions decide; the functions they call in turn are emulated again."""
        for argument in (*args, *kwargs.values()):
            if type(argument) in types and not _by_default(argument):
                with self:
                    result = argument.__torch_function__(func, types, args, kwargs)
                if result is not NotImplemented:
                    return result
        return func(*args, **kwargs)


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _by_default(argument: Any) -> bool:
    """Whether an argument is a subclass of tensors that leaves torch's functions as they are."""
    override = getattr(type(argument).__torch_function__, "__func__", None)
    return override is torch.Tensor.__torch_function__.__func__  # type: ignore[attr-defined]  # in torch


def _public(machine: Machine, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    call = public_call(args, kwargs)
    if torch.is_autocast_enabled("cpu"):
        call = call.as_autocast(torch.get_autocast_dtype("cpu"))
    refused = machine.release.dropout == "refused"  # these releases have their own messages for integers
    if not (call.on_cpu and call.well_formed and (refused or call.query.is_floating_point())):
        return func(*args, **kwargs)  # not ours, or malformed: torch reports the problem
    with _without_autocast():
        return attention(call, machine)


def _operator(machine: Machine, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    call = operator_call(args, kwargs)
    if not call.on_cpu or machine.release.general == "none":
        return func(*args, **kwargs)
    with _without_autocast():
        return run_operator(call, machine, want_weights=True)


def _baddbmm(machine: Machine, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    before = args[0] if args else kwargs.get("input")
    if not (isinstance(before, torch.Tensor) and before.device.type == "cpu" and machine.has("SDPA026")):
        return func(*args, **kwargs)
    return baddbmm_reading_its_input(func, args, kwargs)


_math_for_mps = getattr(torch.ops.aten, "_scaled_dot_product_attention_math_for_mps", None)


def _without_autocast() -> AbstractContextManager[Any]:
    """A kernel does its own rounding: its steps are not subject to an autocast region."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()


_INTERCEPTED: dict[Any, Callable[..., Any]] = {
    # torch's own function: the public name may hold a fix by the time this is imported.
    torch._C._nn.scaled_dot_product_attention: _public,  # noqa: SLF001
    **dict.fromkeys(BADDBMM, _baddbmm),
}
if _math_for_mps is not None:  # torch 2.4 has no such operator
    _INTERCEPTED |= {_math_for_mps: _operator, _math_for_mps.default: _operator}


def active() -> Emulation | None:
    """The innermost emulation in effect on this thread; None outside, and while it is suspended."""
    innermost = _thread.stack[-1] if _thread.stack else None
    return None if innermost is None else innermost.emulation


@contextmanager
def suspended() -> Iterator[None]:
    """Inside this context CPU tensors are plain CPU tensors again, for control computations."""
    _thread.stack.append(None)
    try:
        yield
    finally:
        _thread.stack.pop()


def in_effect(device: str | torch.device) -> bool:
    """Whether a device behaves as MPS: a real MPS device does, and the CPU does while an emulation is active."""
    kind = torch.device(device).type
    return kind == "mps" or (kind == "cpu" and active() is not None)


def emulated(emulation: Emulation | None, on_abort: OnAbort = "raise") -> AbstractContextManager[EmulatedMPS | None]:
    """The context manager that puts an emulation into effect, and does nothing for None."""
    return nullcontext() if emulation is None else EmulatedMPS(emulation, on_abort=on_abort)


def emulate_mps(
    release: str, macos: int = 15, defects: Sequence[str] | None = None, *, on_abort: OnAbort = "raise"
) -> EmulatedMPS:
    """Make CPU tensors use models of the attention kernels that a torch release has on MPS.

    Inside the context `F.scaled_dot_product_attention`, `aten::_scaled_dot_product_attention_math_for_mps`
    and `torch.baddbmm` on CPU tensors take the paths, the rounding and the known defects of that release.
    Contexts nest (the innermost counts), restore the previous state, and apply to the current thread only.

    Args:
        release: Such as `2.8` or `2.8.0`.
        macos: Major version of macOS.
        defects: None for the defects of the release, empty for none, or ids such as `SDPA001` for exactly
            those.
        on_abort: What to do where a real MPS device ends the process: `raise` an `EmulatedAbort`, or end the
            `process`.

    Raises:
        BadInput: The release, the macOS version or a defect does not exist.
    """
    if isinstance(defects, str):
        defects = (defects,)
    emulation = Emulation(release, macos, None if defects is None else tuple(defects))
    return EmulatedMPS(emulation, on_abort=on_abort)
