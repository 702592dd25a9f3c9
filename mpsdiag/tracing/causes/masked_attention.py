"""Attention over nothing: rows of the mask that let their query see no key, and masks that are not what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpsdiag.findings import Advice
from mpsdiag.sdpa.watch import SDPA, per_query
from mpsdiag.tracing.causes.root_cause import Candidate, Explanation
from mpsdiag.tracing.watch.operations import SOFTMAX
from mpsdiag.tracing.watch.replay import fully_masked_rows, scores_of
from mpsdiag.tracing.watch.tensors import facts, listed

DEAD_ROWS_REMEDY = Advice(
    text="Use safe_sdpa: the same kernel, exact, fully masked rows give zeros as on the CPU. Or a torch release that "
    "does so (on MPS 2.9 and later). Padding on the right helps only where there is no sliding window.",
    commands=['mpsdiag.install("safe_sdpa")', "mpsdiag run --fix safe_sdpa your_script.py"],
)


@dataclass(frozen=True)
class Rows:
    """Fully masked rows that came out non-finite, as (sequences, queries) bool: all, and by what stands there.

    `real`: at real tokens, which a right mask lets attend at least to themselves. `alone`: in sequences of padding
    only. `before` and `after`: at padding before the first and after the last real token. `known`: the batch has a
    padding mask to tell them apart by.
    """

    bad: Tensor
    real: Tensor
    alone: Tensor
    before: Tensor
    after: Tensor
    known: bool

    def counts(self) -> dict[str, int]:
        """How many of each kind, those that there are."""
        kinds = {
            "padding before the first real token": self.before,
            "padding after the last real token": self.after,
            "sequences of padding only": self.alone,
            "real tokens": self.real,
        }
        if not self.known:
            return {"positions of unknown kind": int(self.bad.sum())}
        return {name: int(rows.sum()) for name, rows in kinds.items() if bool(rows.any())}


def attention_over_nothing(first: Candidate) -> list[Explanation]:
    """NaN came out of a softmax exactly where the mask hides every key; with a second one where two reasons meet."""
    rows = _dead_and_bad(first)
    if rows is None:
        return []
    evidence = _evidence(first, rows)
    found = []
    if bool(rows.real.any()):
        found.append(_contradicting(first, rows, evidence))
    if bool((rows.bad & ~rows.real & ~rows.alone).any()):
        found.append(_dead(first, rows, evidence))
    if bool(rows.alone.any()):
        found.append(_only_padding(rows, evidence))
    return found


def _dead_and_bad(first: Candidate) -> Rows | None:
    """Rows of (sequences, queries) that are NaN and whose mask hides every key, in some head."""
    call, result = first.call, first.output
    if first.terminal.kind != "nan" or call is None or result is None or result.dim() != 4:
        return None
    if call.operation not in (SDPA, *SOFTMAX):
        return None
    dead = fully_masked_rows(call, result)
    if dead is None:
        return None
    dead = dead & ~torch.isfinite(result).all(-1)
    if call.operation == SDPA:
        # Where the scores of a row overflow, the mask is not the reason: infinity plus minus infinity is NaN.
        scores = scores_of(first.named)
        if scores is not None and scores.shape[:-1] == dead.shape:
            dead = dead & (scores.amax(-1) <= torch.finfo(first.named["query"].dtype).max).to(dead.device)
    found = per_query(dead)
    return _sort_rows(found, first.batch.get("attention_mask")) if bool(found.any()) else None


def _sort_rows(bad: Tensor, padding: Any) -> Rows:
    """Tell by the padding mask of the batch what stands at each bad position."""
    bad = bad.cpu()
    none = torch.zeros_like(bad)
    if not isinstance(padding, Tensor) or padding.dim() != 2 or padding.shape != bad.shape:
        return Rows(bad, none, none, none, none, known=False)
    kept = padding.bool().cpu()
    alone = ~kept.any(-1, keepdim=True).expand_as(kept)
    so_far = kept.cumsum(-1)
    before, after = (so_far == 0) & ~alone, (so_far == so_far[:, -1:]) & ~kept & ~alone
    return Rows(bad, bad & kept, bad & alone, bad & before, bad & after, known=True)


def _evidence(first: Candidate, rows: Rows) -> dict[str, Any]:
    mask = first.named.get("attn_mask")
    return {
        "dead_rows": int(rows.bad.sum()),
        "where": rows.counts(),
        "sequences": listed(rows.bad.any(1)),
        "positions": listed(rows.bad.any(0)),
        "mask": facts(mask, "attn_mask") if isinstance(mask, Tensor) else None,
        "grad_mode": first.grad,
        "device": first.device,
    }


def _dead(first: Candidate, rows: Rows, evidence: dict[str, Any]) -> Explanation:
    reasons = []
    if bool(rows.before.any()):
        reasons.append("padding on the left")
    if bool(rows.after.any()):
        reasons.append("a sliding window that padding on the right outlasts")
    because = f", from {' and '.join(reasons)}" if reasons else ""
    return Explanation(
        "dead_rows",
        f"{int((rows.bad & ~rows.real & ~rows.alone).sum())} fully masked attention rows{because}: "
        f"their softmax over nothing is NaN on {first.device}, and the next layer spreads it over the whole "
        "sequence",
        DEAD_ROWS_REMEDY,
        evidence,
    )


def _only_padding(rows: Rows, evidence: dict[str, Any]) -> Explanation:
    return Explanation(
        "bad_mask",
        f"{int(rows.alone.any(1).sum())} sequences of the batch are padding only: their queries may attend to nothing",
        Advice(
            text="Drop empty texts before they are batched: their attention_mask is all zeros. safe_sdpa makes them "
            "harmless.",
            commands=[
                'dataset.filter(lambda row: any(row["attention_mask"]))',
                'mpsdiag.install("safe_sdpa")',
            ],
        ),
        evidence,
    )


def _contradicting(first: Candidate, rows: Rows, evidence: dict[str, Any]) -> Explanation:
    mask, query = first.named.get("attn_mask"), first.named.get("query")
    shapes = ""
    if isinstance(mask, Tensor) and isinstance(query, Tensor):
        shapes = f" (mask {tuple(mask.shape)}, query {tuple(query.shape)})"
    return Explanation(
        "bad_mask",
        f"{int(rows.real.sum())} real tokens may attend to nothing, not even to themselves: the mask that reaches "
        f"attention{shapes} contradicts the attention_mask of the batch",
        Advice(
            text="Look at what turns the attention_mask into the mask of this layer: it has to be (sequences, 1 or "
            "heads, queries, keys), and broadcasting must not put another sequence's padding, or keys for queries, in "
            "its place.",
        ),
        evidence,
    )
