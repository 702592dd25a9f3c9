"""Entries that are knowledge only: no release has them, or nobody has confirmed them. They never pass."""

from __future__ import annotations

from typing import Final

from mpsdiag.probes.declaration import Hits, Probe, Remedy


def _entry(number: str, title: str, symptom: str, upstream: tuple[str, ...], why: str, hits: Hits) -> Probe:
    return Probe(
        id=f"SDPA{number}",
        title=title,
        symptom=symptom,
        upstream=upstream,
        releases=(),
        fixed=why,
        hits=hits,
        remedy=Remedy("Use a released torch."),
        trigger=None,
        bad="wrong values",
        good="right values",
        never_run=why,
    )


PROBES: Final = (
    _entry(
        "007",
        "The prefill kernel did not convert additive masks to base 2",
        "Additive masks other than 0 and -inf had too little effect.",
        ("https://github.com/pytorch/pytorch/issues/184400",),
        "only in nightlies of May 2026, fixed before 2.13.0: no release has it",
        "evaluation",
    ),
    _entry(
        "023",
        "float32 attention with a mask gave NaN on the macOS 15 beta",
        "NaN in rows that are not masked.",
        (
            "https://github.com/pytorch/pytorch/issues/132220",
            "https://github.com/pytorch/pytorch/pull/132190",
        ),
        "only in nightlies before 2.5.0, on a beta of macOS 15: no release has it",
        "evaluation",
    ),
    _entry(
        "027",
        "The compile signature lacked enable_gqa",
        "torch.compile of attention with grouped heads raised.",
        ("https://github.com/pytorch/pytorch/pull/181383",),
        "only in the release candidate of 2.12, fixed before 2.12.0: no release has it",
        "both",
    ),
    _entry(
        "028",
        "Reading beyond the keys when their number is no multiple of 32",
        "Wrong values for key lengths such as 38.",
        ("https://github.com/pytorch/pytorch/pull/169222",),
        "refuted: 38 keys with NaN behind every buffer come out right in the kernels of 2.8.0 to 2.14.0",
        "evaluation",
    ),
)
