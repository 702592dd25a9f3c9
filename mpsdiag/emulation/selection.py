"""What is emulated: a torch release, a macOS version and a choice of defects; and the resulting machine.

The choice is a value that can be stored and sent. The machine has state between calls, and refuses or aborts as its
operator does.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

from mpsdiag.emulation.releases import DEFECTS, RELEASES, TABLE, Release, defects_of
from mpsdiag.errors import BadInput, one_of

if TYPE_CHECKING:
    import torch

    from mpsdiag.emulation.call import AttentionCall

MACOS: Final = (13, 14, 15, 26)
"""The macOS versions that can be emulated."""


def no_such_macos(given: object) -> str:
    """Why a macOS cannot be emulated, in words that follow a colon."""
    reason = f"choose {', '.join(map(str, MACOS[:-1]))} or {MACOS[-1]}"
    if given == 27:
        reason = "nothing known of attention there differs from macOS 26, so choose 26"
    return f"there is no macOS {given} to emulate: {reason}."


@dataclass(frozen=True)
class Emulation:
    """A torch release on a macOS version, with defects.

    Attributes:
        release: `2.8` or `2.8.0`; stored as the minor release.
        macos: Major version of macOS.
        defects: Ids of the defects to show; None for those of the release, empty for none. A defect that the
            release does not have is shown too if it is named.

    Raises:
        BadInput: The release, the macOS version or a defect does not exist.
    """

    release: str
    macos: int = 15
    defects: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Normalize the fields, and refuse values that do not exist."""
        if not isinstance(self.release, str):
            raise BadInput(
                f"The torch release is {self.release!r}, not a text: put it in quotes, as in "
                'emulate_mps("2.10"). As a number, 2.10 is 2.1.'
            )
        match = re.fullmatch(r"(\d+\.\d+)(\.\d+)?([+a-z].*)?", self.release)
        release = one_of("torch release", match[1] if match else self.release, RELEASES)
        object.__setattr__(self, "release", release)
        macos: object = self.macos
        if isinstance(macos, str) and macos.isdecimal():
            object.__setattr__(self, "macos", int(macos))
        if not isinstance(self.macos, int) or self.macos not in MACOS:
            raise BadInput("T" + no_such_macos(self.macos)[1:])
        if self.defects is not None:
            named = tuple(one_of("defect", name, DEFECTS) for name in self.defects)
            object.__setattr__(self, "defects", named)

    @property
    def shown(self) -> tuple[str, ...]:
        """The ids of the defects that are shown."""
        return defects_of(self.release, self.macos) if self.defects is None else self.defects

    def lacks_dtype(self, name: str) -> str | None:
        """Why the emulated device cannot compute in a dtype, or None if it can; the CPU underneath has all dtypes."""
        return "MPS does not support float64" if name == "float64" else None

    def require_dtype(self, name: str) -> None:
        """Refuse a dtype that the emulated device does not support."""
        reason = self.lacks_dtype(name)
        if reason:
            raise BadInput(f"{reason}, and neither does {self.describe()}. Choose another dtype.")

    def describe(self) -> str:
        """One phrase for people, such as `emulated MPS of torch 2.8 on macOS 15`."""
        phrase = f"emulated MPS of torch {self.release} on macOS {self.macos}"
        if self.defects is None:
            return phrase
        return f"{phrase}, defects: {', '.join(self.defects) or 'none'}"


OnAbort = Literal["raise", "process"]


def _seeded() -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(0x6D7073)


@dataclass
class Machine:
    """An Apple device with a torch release, as far as it matters to attention.

    `garbage` gives the content of memory that was never written: seeded, so runs repeat and calls differ. `gaps` are
    the distances between sums and maxima in the calls of SDPA004: the allocator puts the maxima right behind, then
    elsewhere. `graphs` is the cache of compiled graphs: what is kept from the first call of a key.
    """

    release: Release
    macos: int
    defects: frozenset[str]
    on_abort: OnAbort
    garbage: torch.Generator = field(default_factory=_seeded)
    gaps: Iterator[int] = field(default_factory=lambda: itertools.cycle(range(16)))
    graphs: dict[tuple[object, ...], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, emulation: Emulation, on_abort: OnAbort) -> Machine:
        """A new machine for an emulation."""
        return cls(TABLE[emulation.release], emulation.macos, frozenset(emulation.shown), on_abort)

    def has(self, defect: str) -> bool:
        """Whether it has a defect, by id."""
        return defect in self.defects


class EmulatedAbort(RuntimeError):  # noqa: N818 - it stands for an abort, which is no exception
    """On the emulated release this call would have ended the process (SIGABRT)."""


def abort(message: str, on_abort: OnAbort) -> NoReturn:
    """End the process as the emulated release would, or raise EmulatedAbort."""
    if on_abort == "process":
        sys.stderr.write(f"emulated abort: {message}\n")
        sys.stderr.flush()
        os.abort()
    raise EmulatedAbort(f"{message} (on a real MPS device this ends the process)")


NDARRAY_BYTES = 1 << 32
BOTH_MASKS = "_scaled_dot_product_attention: Explicit attn_mask should not be set when is_causal=True"


def refuse_call(call: AttentionCall, machine: Machine) -> None:
    """Raise or abort for calls that the operator does not support, before it chooses a path."""
    release = machine.release
    if release.dropout == "refused":
        if not call.query.is_floating_point():
            raise NotImplementedError(f"scaled_dot_product_attention for MPS does not support dtype {call.query.dtype}")
        if call.dropout_p > 0.0 and not machine.has("SDPA008"):
            raise NotImplementedError("scaled_dot_product_attention for MPS does not support dropout.")
    if call.is_causal and call.mask is not None:
        if machine.has("SDPA017"):
            abort("NSInvalidArgumentException: is_causal together with attn_mask", machine.on_abort)
        if not release.prefill_dims:
            raise RuntimeError(BOTH_MASKS)
    if machine.has("SDPA011") and call.query.dim() != 4:
        if call.query.dim() > 4:
            abort("mps_matmul: incompatible dimensions, invalid shape", machine.on_abort)
        last = call.query.dim() - 1
        raise IndexError(f"Dimension out of range (expected to be in range of [{-last - 1}, {last}], but got 3)")
    if call.enable_gqa and machine.has("SDPA010") and call.query.size(-3) != call.key.size(-3):
        abort("mps_matmul: incompatible dimensions", machine.on_abort)


def refuse_general(call: AttentionCall, machine: Machine) -> None:
    """Raise or abort for calls that the general path does not support: a mask with `is_causal`, too many scores."""
    if call.is_causal and call.mask is not None:
        raise RuntimeError(BOTH_MASKS)
    batch, heads, rows, _ = call.query.shape
    size = batch * heads * rows * call.key.size(2) * call.query.element_size()
    if size > NDARRAY_BYTES and machine.has("SDPA019"):
        abort("[MPSNDArray initWithDevice:descriptor:] Error: total bytes of NDArray > 2**32", machine.on_abort)
