"""The hand-written kernels: buffers too small (up to 8 queries), NaN swallowed (any number of queries)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from mpsdiag.probes.declaration import Probe, Remedy, span
from mpsdiag.probes.outcome import Check
from mpsdiag.probes.strides import VECTOR_HEAD_DIMS

if TYPE_CHECKING:
    from mpsdiag.probes.lab import Lab


def _two_pass_buffers(lab: Lab) -> Iterator[Check]:
    for dtype in ("bfloat16", "float16"):
        lab.require_dtype(dtype)
        q, k, v = lab.qkv((1, 32, 1, 128), (1, 32, 1024, 128), dtype=dtype)
        yield lab.check(f"{dtype}, 1 query, 1024 keys", q, k, v)


def _swallowed_nan(lab: Lab) -> Iterator[Check]:
    """A NaN in the query or in all keys must come out: attention that hides it hides a broken model."""
    import torch

    for length, poisoned in itertools.product((4, 16), ("one query", "every key of a head")):
        q, k, v = lab.qkv((1, 2, length, 64), (1, 2, 16, 64))
        with torch.no_grad():
            (q[0, 0, :1] if poisoned == "one query" else k[0, 0])[:] = torch.nan
        output = lab.attend(q, k, v)
        with lab.control():
            spoilt = output[0, 0, :1] if poisoned == "one query" else output[0, 0]
            shown = bool(spoilt.isnan().all())
            others = bool(torch.isfinite(output[0, 1]).all())
            others &= poisoned != "one query" or bool(torch.isfinite(output[0, 0, 1:]).all())
        seen = "NaN kept" if shown else ("zeros" if not bool(spoilt.any()) else "finite values")
        yield Check(f"NaN in {poisoned}, {length} queries", shown and others, seen, lab.mode)


def _explains_buffers(at: Mapping[str, Any]) -> bool:
    return bool(
        at["queries"] <= 8
        and at["keys"] >= 1024
        and at["mask"] == "none"
        and at["head_dim"] in VECTOR_HEAD_DIMS
        and at["dtype"] in {"bfloat16", "float16"}
    )


PROBES: Final = (
    Probe(
        id="SDPA004",
        title="The two-pass kernel writes beyond its buffers for half dtypes from 1024 keys on",
        symptom="Generation turns to garbage, differently each time, once the context passes 1024 tokens. "
        "Whether it does depends on where the allocator puts two buffers.",
        upstream=(
            "https://github.com/pytorch/pytorch/issues/174861",
            "https://github.com/pytorch/pytorch/pull/174945",
        ),
        releases=span(8, 10),
        fixed="2.11.0",
        hits="evaluation",
        remedy=Remedy(
            "Upgrade torch, or hand over an additive mask of zeros, which takes the other path.",
            ("pip install --upgrade 'torch>=2.11'",),
        ),
        trigger=_two_pass_buffers,
        bad="garbage",
        good="right values",
        explains=_explains_buffers,
    ),
    Probe(
        id="SDPA020",
        title="NaN in the query, or in all keys of a head, is swallowed",
        symptom="A model that already went NaN looks healthy: attention answers with zeros.",
        upstream=("https://github.com/pytorch/pytorch/pull/188147",),
        releases=span(13, 13),
        fixed="2.14.0",
        hits="evaluation",
        remedy=Remedy(
            "Upgrade torch; look for NaN before the attention.", ("pip install --upgrade 'torch>=2.14'",)
        ),
        trigger=_swallowed_nan,
        bad="zeros",
        good="NaN",
    ),
)
