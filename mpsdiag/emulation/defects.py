"""The known defects that the emulation can show, as data: what each is, which releases have it, on which macOS.

`SDPA0NN` is entry BNN of the list of known defects. Entries that a CPU model cannot show (memory leaks,
defects of other operators) are not here. Defects of Apple's graph belong to a torch release and a macOS: the
graph is compiled by the system.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from mpsdiag.emulation.releases import between


@dataclass(frozen=True)
class Defect:
    """One known defect.

    Attributes:
        id: Stable id, such as `SDPA001`.
        title: One line.
        upstream: The thread that reports it.
        releases: Minor releases that have it; empty if only nightly builds had it.
        first_macos: The oldest macOS it is known on; None if it does not depend on that.
        last_macos: The newest, likewise.
    """

    id: str
    title: str
    upstream: str
    releases: tuple[str, ...]
    first_macos: int | None = None
    last_macos: int | None = None


def _entry(number: str, thread: int | str, releases: str, title: str, **macos: int) -> Defect:
    """An entry; releases as in `2.5 to 2.6, 2.10 to 2.15`."""
    spans = [span.split(" to ") for span in releases.split(", ") if span]
    named = tuple(release for span in spans for release in between(span[0], span[-1]))
    return Defect(
        f"SDPA{number}", title, f"pytorch#{thread}" if isinstance(thread, int) else thread, named, **macos
    )


_SEEN = "none known: seen in the shipped kernels"
_DERIVED = "none known: derived from the key of the graph cache"
_ALL = (
    _entry("001", 156707, "2.0 to 2.8", "a fully masked row gives NaN"),
    _entry("002", 163597, "2.8", "the vector kernel ignores the strides of the query"),
    _entry("003", 181133, "2.8 to 2.11", "the vector kernels assume the batch stride"),
    _entry(
        "004",
        174861,
        "2.8 to 2.10",
        "the two-pass vector kernel writes out of bounds in half precision: if the allocator puts its two buffers "
        "side by side, the lower half of the rows is wrong",
    ),
    _entry("005", 182285, "2.8 to 2.11", "the one-pass vector kernel permutes the strides of a bool mask"),
    _entry("006", 184180, "2.8 to 2.12", "the vector kernels lose the batch offset of a mask with one head"),
    _entry("007", 184400, "", "the prefill kernel does not scale a float mask by log2(e)"),
    _entry("008", 184126, "2.12", "dropout is ignored without gradients"),
    _entry(
        "009", 176767, "2.5 to 2.11", "the output is as wide as the query where the value has another width"
    ),
    _entry("010", 149132, "2.5 to 2.6", "enable_gqa ends the process"),
    _entry("011", 147443, "2.5 to 2.6", "inputs that are not 4D fail or end the process"),
    # Reports name macOS 26 and 27; upstream's own causal float16 tests passed on 13 to 15.
    _entry(
        "014",
        195910,
        "2.10 to 2.12",
        "is_causal lets queries see later keys, in groups of four rows, in half precision",
        first_macos=26,
    ),
    _entry("015", 184122, "2.5 to 2.12", "the scale of the first call is kept for later calls"),
    _entry(
        "016",
        _DERIVED,
        "2.5 to 2.6, 2.10 to 2.15",
        "the mask's shape (2.5, 2.6) or dtype (2.10 and later) of the first call is kept for later calls",
    ),
    _entry("017", 181856, "2.8 to 2.12", "is_causal together with a mask ends the process"),
    # As many scores are more than 2**32 bytes, with which older systems end the process (SDPA019).
    _entry("018", 179352, "2.5 to 2.12", "heads whose scores lie beyond 2**32 are corrupt", first_macos=26),
    _entry("019", 149261, "2.5 to 2.12", "scores of more than 2**32 bytes end the process", last_macos=15),
    _entry(
        "020",
        188147,
        "2.13",
        "NaN in a query, or in every key of a head, is swallowed by the vector and the prefill kernels: zeros",
    ),
    _entry("021", 160841, "2.0 to 2.9", "scores beyond the range of float16 overflow before the softmax"),
    # torch itself multiplies the input by beta, on every macOS: reported on 13 (diffusers#2643), 26 and 27.
    _entry("026", 187521, "2.0 to 2.13", "baddbmm with beta=0 lets NaN through"),
    _entry(
        "029",
        _SEEN,
        "2.8 to 2.12",
        "the one-pass vector kernel, called by the operator itself, gives NaN where a bool mask hides every key",
    ),
    _entry(
        "030",
        _SEEN,
        "2.13",
        "the prefill kernel misreads what lies 2**31 elements behind a tensor's beginning",
    ),
)

DEFECTS: Final[Mapping[str, Defect]] = MappingProxyType({defect.id: defect for defect in _ALL})
"""The defects by id, in the order of the list."""


def defects_of(release: str, macos: int = 15) -> tuple[str, ...]:
    """The ids of the defects that a minor release such as `2.8` has on a macOS."""
    return tuple(
        name
        for name, defect in DEFECTS.items()
        if release in defect.releases
        and (defect.first_macos or macos) <= macos <= (defect.last_macos or macos)
    )
