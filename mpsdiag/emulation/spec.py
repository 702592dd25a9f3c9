"""What is emulated: a torch release, a macOS version, a choice of defects. A value that can be stored and sent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpsdiag.emulation.defects import DEFECTS, defects_of
from mpsdiag.emulation.releases import RELEASES
from mpsdiag.errors import BadInput, one_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpsdiag.emulation.aborts import OnAbort
    from mpsdiag.emulation.mode import EmulatedMPS


@dataclass(frozen=True)
class Emulation:
    """A torch release on a macOS version, with defects.

    Attributes:
        release: `2.8` or `2.8.0`; kept as the minor release.
        macos: Major version of macOS.
        defects: Ids of the defects to show; None for those of the release, empty for none. A defect that the
            release does not have is shown too when it is named.

    Raises:
        BadInput: The release, the macOS version or a defect does not exist.
    """

    release: str
    macos: int = 15
    defects: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Bring the fields to their one form, and refuse what does not exist."""
        match = re.fullmatch(r"(\d+\.\d+)(\.\d+)?([+a-z].*)?", str(self.release))
        release = one_of("torch release", match[1] if match else str(self.release), RELEASES)
        object.__setattr__(self, "release", release)
        if not isinstance(self.macos, int) or self.macos < 13 or 15 < self.macos < 26:
            raise BadInput(f"There is no macOS {self.macos} to emulate: choose 13, 14, 15 or 26.")
        if self.defects is not None:
            object.__setattr__(
                self, "defects", tuple(one_of("defect", name, DEFECTS) for name in self.defects)
            )

    @property
    def shown(self) -> tuple[str, ...]:
        """The ids of the defects that are shown."""
        return defects_of(self.release) if self.defects is None else self.defects

    def describe(self) -> str:
        """One phrase for people, such as `emulated MPS of torch 2.8 on macOS 15`."""
        phrase = f"emulated MPS of torch {self.release} on macOS {self.macos}"
        if self.defects is None:
            return phrase
        return f"{phrase}, defects: {', '.join(self.defects) or 'none'}"

    def enter(self, on_abort: OnAbort = "raise") -> EmulatedMPS:
        """Make the context manager that puts the emulation into effect.

        Args:
            on_abort: Whether an emulated abort raises `EmulatedAbort` or really ends the process.
        """
        from mpsdiag.emulation.mode import EmulatedMPS

        return EmulatedMPS(self, on_abort=on_abort)


def emulate_mps(
    release: str,
    macos: int = 15,
    defects: Sequence[str] | None = None,
    *,
    on_abort: OnAbort = "raise",
) -> EmulatedMPS:
    """Let CPU tensors meet the attention kernels that a torch release has on MPS.

    Inside the context `F.scaled_dot_product_attention`, `aten::_scaled_dot_product_attention_math_for_mps`
    and `torch.baddbmm` on CPU tensors take the paths, the rounding and the known defects of that release.
    Nests (the innermost counts), restores, and holds for the current thread only.

    Args:
        release: Such as `2.8` or `2.8.0`.
        macos: Major version of macOS.
        defects: None for the defects of the release, empty for none, or ids such as `SDPA001` for exactly
            those.
        on_abort: What happens where the real thing ends the process: `raise` an `EmulatedAbort`, or end the
            `process`.

    Raises:
        BadInput: The release, the macOS version or a defect does not exist.
    """
    if isinstance(defects, str):
        defects = (defects,)
    return Emulation(release, macos, None if defects is None else tuple(defects)).enter(on_abort)
