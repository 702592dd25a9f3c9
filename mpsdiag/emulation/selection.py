"""What is emulated: a torch release, a macOS version, a choice of defects. A value that can be stored and sent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from mpsdiag.emulation.releases import DEFECTS, RELEASES, defects_of
from mpsdiag.errors import BadInput, one_of

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
        if not isinstance(self.release, str):
            raise BadInput(
                f"The torch release is {self.release!r}, not text: put it into quotes, as in "
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
        """Why the emulated device cannot compute in a dtype, or None when it can: the CPU beneath it has them all."""
        return "MPS does not support float64" if name == "float64" else None

    def require_dtype(self, name: str) -> None:
        """Refuse a dtype in which the emulated device does not compute."""
        reason = self.lacks_dtype(name)
        if reason:
            raise BadInput(f"{reason}, and neither does {self.describe()}. Choose another dtype.")

    def describe(self) -> str:
        """One phrase for people, such as `emulated MPS of torch 2.8 on macOS 15`."""
        phrase = f"emulated MPS of torch {self.release} on macOS {self.macos}"
        if self.defects is None:
            return phrase
        return f"{phrase}, defects: {', '.join(self.defects) or 'none'}"
