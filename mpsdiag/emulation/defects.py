"""The known defects that the emulation can show, as data: what each is, and which releases have it.

`SDPA0NN` is entry BNN of the list of known defects. Entries that a CPU model cannot show (memory leaks,
defects of other operators) are not here.
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
        upstream: The thread where it is told.
        releases: Minor releases that have it; empty if only nightly builds had it.
    """

    id: str
    title: str
    upstream: str
    releases: tuple[str, ...]


_ALL = (
    Defect("SDPA001", "a fully masked row gives NaN", "pytorch#156707", between("2.0", "2.8")),
    Defect(
        "SDPA002",
        "the vector kernel ignores the strides of the query",
        "pytorch#163597",
        between("2.8", "2.8"),
    ),
    Defect(
        "SDPA003",
        "the vector kernels assume the batch stride of the query",
        "pytorch#181133",
        between("2.8", "2.11"),
    ),
    Defect(
        "SDPA004",
        "the two-pass vector kernel writes out of bounds in half precision: if the allocator puts its two buffers "
        "side by side, the lower half of the rows is wrong",
        "pytorch#174861",
        between("2.8", "2.10"),
    ),
    Defect(
        "SDPA005",
        "the one-pass vector kernel reads a bool mask with permuted strides",
        "pytorch#182285",
        between("2.8", "2.11"),
    ),
    Defect(
        "SDPA006",
        "the vector kernels lose the batch offset of a mask with one head",
        "pytorch#184180",
        between("2.8", "2.12"),
    ),
    Defect("SDPA007", "the prefill kernel does not scale a float mask by log2(e)", "pytorch#184400", ()),
    Defect("SDPA008", "dropout is ignored without gradients", "pytorch#184126", between("2.12", "2.12")),
    Defect(
        "SDPA009",
        "the output has the head dimension of the query where the value's differs",
        "pytorch#176767",
        between("2.5", "2.11"),
    ),
    Defect("SDPA010", "enable_gqa ends the process", "pytorch#149132", between("2.5", "2.6")),
    Defect(
        "SDPA011", "inputs that are not 4D fail or end the process", "pytorch#147443", between("2.5", "2.6")
    ),
    Defect(
        "SDPA014",
        "is_causal lets queries see later keys, in groups of four rows, in half precision",
        "pytorch#195910",
        between("2.10", "2.12"),
    ),
    Defect(
        "SDPA015",
        "the scale of the first call is kept for later calls",
        "pytorch#184122",
        between("2.5", "2.12"),
    ),
    Defect(
        "SDPA016",
        "the mask's shape (2.5, 2.6) or dtype (2.10 and later) of the first call is kept for later calls",
        "none known: derived from the key of the graph cache",
        (*between("2.5", "2.6"), *between("2.10", "2.15")),
    ),
    Defect(
        "SDPA017", "is_causal together with a mask ends the process", "pytorch#181856", between("2.8", "2.12")
    ),
    Defect(
        "SDPA018", "heads whose scores lie beyond 2**32 are corrupt", "pytorch#179352", between("2.5", "2.12")
    ),
    Defect(
        "SDPA019", "scores of more than 2**32 bytes end the process", "pytorch#149261", between("2.5", "2.12")
    ),
    Defect(
        "SDPA020",
        "NaN in a query, or in every key of a head, is swallowed by the vector and the prefill kernels: zeros",
        "pytorch#188147",
        between("2.13", "2.13"),
    ),
    Defect(
        "SDPA021",
        "scores beyond the range of float16 overflow before the softmax",
        "pytorch#160841",
        between("2.0", "2.9"),
    ),
    Defect("SDPA026", "baddbmm with beta=0 lets NaN through", "pytorch#187521", between("2.0", "2.13")),
    Defect(
        "SDPA029",
        "the one-pass vector kernel gives NaN for a row whose bool mask hides every key",
        "none known: seen in the shipped kernels, reached by the operator itself only",
        between("2.8", "2.12"),
    ),
)

DEFECTS: Final[Mapping[str, Defect]] = MappingProxyType({defect.id: defect for defect in _ALL})
"""The defects by id, in the order of the list."""


def defects_of(release: str) -> tuple[str, ...]:
    """The ids of the defects that a minor release such as `2.8` has."""
    return tuple(defect.id for defect in _ALL if release in defect.releases)
