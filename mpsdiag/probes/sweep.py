"""The sweep: every combination of dtype, head dim, lengths, mask and layout, and which known defects explain it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Final

from mpsdiag.device import supports_dtype, torch_dtype
from mpsdiag.emulation.releases import Remedy
from mpsdiag.probes.declaration import Check, Finding, Probe, Refused
from mpsdiag.probes.known import CATALOGUE
from mpsdiag.probes.known.fully_masked import additive
from mpsdiag.words import ProbeStatus

if TYPE_CHECKING:
    from torch import Tensor

    from mpsdiag.probes.lab import Lab

SWEEP: Final = "SWEEP"
DTYPES: Final = ("float32", "bfloat16", "float16")
HEAD_DIMS: Final = (32, 64, 80, 96, 128, 256)
QUERIES: Final = (1, 4, 8, 9, 16, 128)
KEYS: Final = (None, 64, 1024, 4096)
"""None stands for as many keys as queries."""
LAYOUTS: Final = ("contiguous", "transposed")
MASKS: Final = ("none", "causal", "bool", "-inf", "finfo.min")
TRAINED_MASKS: Final = ("none", "bool")
TRAINED_KEYS: Final = (None, 64)
"""With gradients every call takes one composite path, so a thin slice shows as much as all of them."""
BATCH: Final = 2
SMALL: Final = 2**13
"""Up to this many scores in a head there are two heads; beyond, one, for which all layouts are alike, so one is run."""


@dataclass(frozen=True)
class Shape:
    """One shape of the sweep; (BATCH, heads, queries, head_dim) against (BATCH, heads, keys, head_dim)."""

    head_dim: int
    queries: int
    keys: int

    @property
    def heads(self) -> int:
        """How many heads."""
        return 2 if self.queries * self.keys <= SMALL else 1

    @property
    def layouts(self) -> tuple[str, ...]:
        """The layouts that differ."""
        return LAYOUTS if self.heads > 1 else LAYOUTS[:1]

    def mask(self) -> Tensor:
        """A left-padded batch, (BATCH, 1, queries, keys), True = may attend.

        A quarter of the keys is padding; in the first sample at least one query, up to a quarter, is fully masked.
        """
        import torch

        real = torch.arange(self.keys) >= self.keys // 4
        visible = real.expand(BATCH, 1, self.queries, self.keys).clone()
        visible[0, :, : max(1, self.queries // 4)] = False
        return visible


def shapes(keys: tuple[int | None, ...]) -> Iterator[Shape]:
    """Give all shapes with these key lengths."""
    for head_dim, queries, length in product(HEAD_DIMS, QUERIES, keys):
        yield Shape(head_dim, queries, queries if length is None else length)


def size() -> int:
    """How many outputs the sweep checks in both grad modes together."""
    evaluated = sum(len(shape.layouts) * len(MASKS) for shape in shapes(KEYS))
    trained = sum(len(TRAINED_MASKS) for _ in shapes(TRAINED_KEYS))
    return len(DTYPES) * (evaluated + trained)


def _sweep(lab: Lab) -> Iterator[Check]:
    dtypes = [name for name in DTYPES if supports_dtype(lab.device, name) is None]
    judged = 0
    for shape in shapes(TRAINED_KEYS if lab.training else KEYS):
        for check in _one_shape(lab, shape, dtypes):
            judged += 1
            yield check
    if not judged:
        raise Refused(f"the backend {lab.backend} supports none of these calls")


def _one_shape(lab: Lab, shape: Shape, dtypes: list[str]) -> Iterator[Check]:
    from mpsdiag.sdpa.float64 import transposed

    masks = TRAINED_MASKS if lab.training else MASKS
    layouts = LAYOUTS[:1] if lab.training else shape.layouts
    visible = shape.mask()
    live = visible.any(-1)
    drawn = lab.qkv(
        (BATCH, shape.heads, shape.queries, shape.head_dim), (BATCH, shape.heads, shape.keys, shape.head_dim)
    )
    for dtype in dtypes:
        q, k, v = contiguous = tuple(tensor.detach().to(torch_dtype(dtype)) for tensor in drawn)
        yardsticks = {
            kind: lab.yardstick(q, k, v, visible if kind == "masked" else None, is_causal=kind == "causal")
            for kind in {_kind(mask) for mask in masks}
        }
        given = {mask: _given(lab, mask, dtype, visible) for mask in masks}
        for layout in layouts:
            q, k, v = contiguous if layout == "contiguous" else (transposed(tensor) for tensor in contiguous)
            for mask in masks:
                at = {"dtype": dtype, "layout": layout, "mask": mask, **vars(shape)}
                try:
                    output = lab.attend(q, k, v, given[mask], is_causal=mask == "causal")
                except Refused:
                    continue
                rows = live if mask == "finfo.min" else None
                yield lab.judged(_name(at), output, yardsticks[_kind(mask)], rows, at)


def _kind(mask: str) -> str:
    """Masks with one float64 result: bool, -inf and, in rows that are not fully masked, finfo.min."""
    return mask if mask in {"none", "causal"} else "masked"


def _given(lab: Lab, mask: str, dtype: str, visible: Tensor) -> Tensor | None:
    import torch

    if mask in {"none", "causal"}:
        return None
    if mask == "bool":
        return visible.to(lab.device)
    number = torch_dtype(dtype)
    fill = -torch.inf if mask == "-inf" else torch.finfo(number).min
    return additive(visible, number, fill).to(lab.device)


def _name(at: dict[str, Any]) -> str:
    return (
        f"{at['dtype']}, {at['layout']}, head dim {at['head_dim']}, "
        f"{at['queries']} queries, {at['keys']} keys, mask {at['mask']}"
    )


SWEEP_PROBE: Final = Probe(
    id=SWEEP,
    title="Sweep of dtypes, shapes, masks and layouts: nothing the catalogue does not explain",
    symptom="Wrong values for some shapes but not for others.",
    upstream=(),
    where="",
    releases=(),
    fixed="",
    hits="both",
    remedy=Remedy(
        text="No known defect explains these failures: please report them.",
        commands=("mpsdiag check --level 3 --markdown",),
    ),
    trigger=_sweep,
    bad="wrong values",
    good="right values",
)

EXAMPLES = 20
"""How many unexplained failures a finding lists one by one; the rest is counted."""


def explanation(check: Check, findings: Sequence[Finding]) -> tuple[str, ...]:
    """List the ids of the probes that failed in the same grad mode and whose defect accounts for this failure."""
    if check.at is None:
        return ()
    failed = [CATALOGUE.get(one.id) for one in findings if getattr(one, check.mode) == "fail"]
    return tuple(one.id for one in failed if one and one.explains and one.explains(check.at))


def attribute(sweep: Finding, findings: Sequence[Finding]) -> list[Finding]:
    """Give each failure of the sweep to the failed probes that explain it; the sweep keeps the others."""
    explained: Counter[str] = Counter()
    left = []
    for check in sweep.failed:
        ids = explanation(check, findings)
        explained.update(ids)
        if not ids:
            left.append(check)
    enriched = list(findings)
    for index, finding in enumerate(findings):
        if count := explained[finding.id]:
            detail = f"{finding.detail}; the sweep shows it in {count} combinations"
            enriched[index] = replace(finding, detail=detail)
    return [*enriched, _what_is_left(sweep, left, explained)]


def _what_is_left(sweep: Finding, left: Sequence[Check], explained: Counter[str]) -> Finding:
    if sweep.status in {"skip", "error"} or not sweep.failed:
        return sweep
    known = ", ".join(f"{name} ({count})" for name, count in sorted(explained.items()))
    detail = f"{len(sweep.failed)} of {sweep.cases} combinations wrong"
    if not left:
        return replace(
            sweep,
            status="pass",
            training="pass",
            evaluation="pass",
            detail=f"{detail}, all explained by {known}",
            failed=(),
            seen="explained",
        )
    example = left[0]
    return replace(
        sweep,
        training=_left_in("training", sweep, left),
        evaluation=_left_in("evaluation", sweep, left),
        detail=(
            f"{detail}, {len(left)} of them not explained by any failed probe"
            + (f" (the others by {known})" if known else "")
            + f"; {example.name}: {example.seen}"
        ),
        failed=tuple(left[:EXAMPLES]),
    )


def _left_in(mode: str, sweep: Finding, left: Sequence[Check]) -> ProbeStatus:
    before: ProbeStatus = getattr(sweep, mode)
    return "pass" if before == "fail" and not any(check.mode == mode for check in left) else before
