"""Fully masked rows (queries that may attend to no key at all), and every call of attention that they may reach.

Such rows are always counted as (sequence, query) pairs that may attend to nothing in some head, each once.
Arguments of a call may answer it themselves, by torch's `__torch_function__` protocol, where the function was
replaced: a class knows a function of torch by one of two names, the function itself, which torch passes and which
tables made earlier hold, or whatever the public name holds at the moment of the call. In stock torch both are the same
object.
"""

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_overloaded_args, handle_torch_function, has_torch_function

from mpsdiag.errors import BadInput


def dead_rows(attn_mask: Tensor, *, keepdim: bool = False) -> Tensor:
    """The rows of a mask that let their query attend to no key: bool, `(..., L)`, with `keepdim` `(..., L, 1)`.

    Works for any shape that `scaled_dot_product_attention` accepts as a mask, bool (True = may attend) or
    floating (`-inf` = may not attend). A row of large finite values such as `finfo.min` is not fully masked:
    its softmax is defined. No device synchronization, no data-dependent branch. Raises BadInput for other
    dtypes, such as a 0/1 integer mask.
    """
    is_bool = attn_mask.dtype == torch.bool
    if not is_bool and not attn_mask.is_floating_point():
        raise BadInput(
            f"An attention mask must be bool or floating, not {attn_mask.dtype}: convert a 0/1 mask with mask.bool()."
        )
    # NaN differs from -inf, so a row with a NaN counts as alive: its NaN must stay visible.
    if plain_on_cpu(attn_mask) and attn_mask.dim() and attn_mask.shape[-1]:
        return _highest(attn_mask, keepdim=keepdim) == (0 if is_bool else float("-inf"))
    return ~(attn_mask if is_bool else attn_mask != float("-inf")).any(dim=-1, keepdim=keepdim)


def masked_pairs(attn_mask: Tensor, shape: torch.Size) -> Tensor:
    """The rows that are fully masked in some head, bool `(sequences, queries)`; `shape` is that of the output.

    The output is `(sequences, heads, queries, channels)` or `(sequences, queries, channels)`; the mask broadcasts.
    """
    rows = dead_rows(attn_mask)
    rows = rows.reshape((1,) * (len(shape) - 1 - rows.dim()) + rows.shape)
    return per_query(rows).expand(shape[0], shape[-2])


def count_pairs(attn_mask: Tensor, shape: torch.Size) -> int | None:
    """The number of `masked_pairs`; None where a value cannot be read without waiting for a device."""
    if not plain_on_cpu(attn_mask):
        return None
    if attn_mask.dtype != torch.bool or attn_mask.dim() != 4 or attn_mask.shape[1] != 1 or not attn_mask.numel():
        return int(masked_pairs(attn_mask, shape).count_nonzero())
    alive = _highest(attn_mask, keepdim=False)  # The usual mask, counted in the fewest operations.
    return (alive.numel() - int(alive.count_nonzero())) * (shape[0] * shape[-2] // alive.numel())


def _highest(attn_mask: Tensor, *, keepdim: bool) -> Tensor:
    """What is highest in each row of a mask on the CPU; of a bool one, a number that is 0 if none is True."""
    if attn_mask.dtype != torch.bool:
        return attn_mask.detach().amax(-1, keepdim=keepdim)
    # A maximum is vectorized on the CPU, where any() takes up to thirty times as long. A bool is a byte, 0 or 1.
    in_fours = attn_mask.is_contiguous() and not (attn_mask.shape[-1] % 4 or attn_mask.storage_offset() % 4)
    return attn_mask.view(torch.int32 if in_fours else torch.uint8).amax(-1, keepdim=keepdim)


def plain_on_cpu(tensor: Tensor) -> bool:
    """Whether a tensor may be read through another dtype: a plain one on the CPU, outside tracing and transforms.

    There its values may be read as well: nothing waits for a device, and nothing records the branch.
    """
    return (
        type(tensor) is torch.Tensor
        and tensor.is_cpu
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None  # noqa: SLF001 - what torch.jit.is_tracing asks
        and not torch._C._are_functorch_transforms_active()  # noqa: SLF001 - no public name for it
        and not torch._C._len_torch_dispatch_stack()  # noqa: SLF001 - fake tensors, tracing by make_fx
    )


SDPA: Final = "scaled_dot_product_attention"


@dataclass(frozen=True)
class SdpaCall:
    """The arguments of one call: query `(..., Hq, L, D)`, key, value, the mask, and the probability of dropout."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0

    @property
    def contiguous(self) -> bool:
        """Query, key and value are contiguous."""
        return all(tensor.is_contiguous() for tensor in (self.query, self.key, self.value))

    def masked_rows(self) -> Tensor | None:
        """Fully masked rows, bool `(sequences, queries)` on the device of the mask; None without a mask."""
        return None if self.attn_mask is None else masked_pairs(self.attn_mask, self.query.shape)


def per_query(rows: Tensor) -> Tensor:
    """Rows of (sequences, heads, queries) as (sequences, queries): True if any head has it; others unchanged."""
    if rows.dim() != 3:
        return rows
    return rows[:, 0] if rows.shape[1] == 1 else rows.any(1)  # A mask is usually the same for all heads.


class SdpaWatch(TorchFunctionMode):
    """Passes every call under it to `saw_sdpa`. Enter it inside an emulation, not around it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # By name: a patched F.scaled_dot_product_attention makes a test of identity fail.
        if getattr(func, "__name__", "") == SDPA:
            known = {name: kwargs[name] for name in SdpaCall.__dataclass_fields__ if name in kwargs}
            self.saw_sdpa(SdpaCall(*args[:5], **known), result)
        return result

    def saw_sdpa(self, call: SdpaCall, result: Tensor) -> None:
        """Called after each call, with its result."""
        raise NotImplementedError


Function = Callable[..., Any]


def overriding(args: tuple[Any, ...], options: Mapping[str, Any]) -> bool:
    """Whether an argument overrides the call itself. Active modes do not count."""
    values = (*args, *options.values())
    return has_torch_function(values) and (torch.compiler.is_compiling() or bool(_owners(values)))


def answer(original: Function, replacement: Function, args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """Let the arguments of a call override it, as they do if the function was not replaced.

    The classes are asked under both names. If none knows either, `replacement` gets the call back with the protocol
    switched off, so that a subclass without its own implementation keeps its type. An `original` that is not torch's
    own gets the call unchanged.
    """
    if not isinstance(original, types.BuiltinFunctionType):
        return original(*args, **options)
    values = (*args, *options.values())
    compiling = torch.compiler.is_compiling()  # a mode cannot be entered there, so one name has to do
    if compiling and torch.nn.functional.scaled_dot_product_attention is original:
        return original(*args, **options)
    if compiling or torch._C._is_torch_function_mode_enabled():  # noqa: SLF001 - modes come first; no public name
        return handle_torch_function(replacement, values, *args, **options)
    owners = _owners(values)
    kinds = tuple(map(type, owners))
    try:
        with _Unanswered(original, kinds):
            result = _ask(owners, original, kinds, args, options)
    except (_UnansweredError, NotImplementedError):  # torch's own biases raise up to 2.7
        result = NotImplemented
    if result is NotImplemented:
        result = _ask(owners, replacement, kinds, args, options)
    # If all refuse, torch raises its own error.
    return original(*args, **options) if result is NotImplemented else result


def _owners(values: tuple[Any, ...]) -> list[Any]:
    # A plain tensor has the method too, inherited by all.
    return _get_overloaded_args([x for x in values if type(x) is not torch.Tensor])


def _ask(
    owners: list[Any], name: Function, kinds: tuple[type, ...], args: tuple[Any, ...], options: Mapping[str, Any]
) -> Any:
    answers = (owner.__torch_function__(name, kinds, args, dict(options)) for owner in owners)
    return next((result for result in answers if result is not NotImplemented), NotImplemented)


class _UnansweredError(BaseException):
    """Raised out of the `__torch_function__` of a class that does not know the function; not an `Exception`."""


class _Unanswered(TorchFunctionMode):
    """Notices that a class passed a call on to the function itself, with its own kind among the arguments."""

    def __init__(self, function: Function, kinds: tuple[type, ...]) -> None:
        super().__init__()
        self._function = function
        self._kinds = kinds

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        options = kwargs or {}
        if func is self._function and any(type(x) in self._kinds for x in (*args, *options.values())):
            raise _UnansweredError
        return func(*args, **options)
