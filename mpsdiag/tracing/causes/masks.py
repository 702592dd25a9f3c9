"""Masks: attention over nothing, masks that contradict the attention_mask, and arithmetic that spoils a mask."""

import torch
from torch import Tensor

from mpsdiag.scenario.exposure import Padding
from mpsdiag.sdpa.watch import SDPA
from mpsdiag.tracing.causes.root_cause import Candidate
from mpsdiag.tracing.origin import Origin
from mpsdiag.tracing.watch.calls import SOFTMAX, fully_masked_rows, scores_of
from mpsdiag.tracing.watch.model_state import is_decoder_of_two, real_positions
from mpsdiag.tracing.watch.tensors import facts, listed
from mpsdiag.words import count

BEFORE, AFTER = "padding before the first real token", "padding after the last real token"
ALONE, REAL, UNKNOWN = "sequences of padding only", "real tokens", "positions of unknown kind"
_REASONS = {BEFORE: "padding on the left", AFTER: "padding on the right longer than the sliding window"}


def attention_over_nothing(first: Candidate) -> list[Origin]:
    """A softmax gave NaN exactly where the mask hides every key; a second origin if there are two reasons."""
    bad = _dead_and_bad(first)
    if bad is None:
        return []
    rows = _by_place(first, bad)
    where = {name: number for name, found in rows.items() if (number := int(found.sum()))}
    mask, query = first.named.get("attn_mask"), first.named.get("query")
    evidence = {
        "dead_rows": int(bad.sum()),
        "where": where,
        "sequences": listed(bad.any(1)),
        "positions": listed(bad.any(0)),
        "mask": facts(mask, "attn_mask") if isinstance(mask, Tensor) else None,
        "grad_mode": first.grad,
    }
    found = []
    if REAL in where:
        shapes = ""
        if isinstance(mask, Tensor) and isinstance(query, Tensor):
            shapes = f" (mask {tuple(mask.shape)}, query {tuple(query.shape)})"
        what = (
            f"{count(where[REAL], 'real token')} may attend to nothing, not even to themselves: the mask that reaches "
            f"attention{shapes} contradicts the attention_mask of the batch"
        )
        found.append(first.origin("bad_mask", what, "contradicting_mask", **evidence))
    if dead := sum(number for name, number in where.items() if name not in (REAL, ALONE)):
        present = " and ".join(reason for name, reason in _REASONS.items() if name in where)
        what = (
            f"{count(dead, 'fully masked attention row')} in this batch{present and f', from {present}'}: their "
            f"softmax over nothing is NaN on {first.device}, and the next layer spreads it over the whole sequence"
        )
        found.append(first.origin("dead_rows", what, _remedy(first), **evidence))
    if ALONE in where:
        what = f"{count(int(rows[ALONE].any(1).sum()), 'sequence')} of padding only: its queries may attend to nothing"
        found.append(first.origin("bad_mask", what, "empty_sequences", **evidence))
    return found


def _remedy(first: Candidate) -> str:
    if first.event.operation == SDPA:
        return "fully_masked_rows"
    return "softmax_by_hand" if first.event.operation in (*SOFTMAX, "sub") else "fused_layers"


def _dead_and_bad(first: Candidate) -> Tensor | None:
    """The rows, (sequences, queries), that are NaN and whose mask hides every key in some head."""
    call, result = first.call, first.output
    if first.terminal.kind != "nan" or call is None or result is None:
        return None
    dead = fully_masked_rows(call, result)
    if dead is None:
        return None
    if call.operation in (SDPA, *SOFTMAX):
        dead = dead & ~torch.isfinite(result).all(-1)
    if call.operation == SDPA:
        # If the scores of a row overflow, the mask is not the reason: infinity plus minus infinity is NaN.
        scores = scores_of(first.named)
        if scores is not None and scores.shape[:-1] == dead.shape:
            dead = dead & (scores.amax(-1) <= torch.finfo(first.named["query"].dtype).max).to(dead.device)
    if not bool(dead.any()):
        return None
    return _per_sequence(dead, real_positions(first.model, first.event.module, first.batch))


def _by_place(first: Candidate, bad: Tensor) -> dict[str, Tensor]:
    """Rows, (sequences, queries) bool, by what stands there; a right mask lets a real token attend to itself."""
    source, padding = first.batch.get("attention_mask"), real_positions(first.model, first.event.module, first.batch)
    empty = torch.zeros(bad.shape[0], 1, dtype=torch.bool)
    attends = is_decoder_of_two(first.model, first.event.module)
    if attends and isinstance(source, Tensor) and source.dim() == 2 and source.shape[0] == bad.shape[0]:
        empty = ~source.bool().cpu().any(-1, keepdim=True)  # An encoder without a token that could be attended to.
    if padding is None or padding.shape != bad.shape:
        return {ALONE: bad & empty, UNKNOWN: bad & ~empty}
    kinds, rest = Padding.of(padding), bad & ~empty
    found = {BEFORE: rest & kinds.before, AFTER: rest & kinds.after}
    found |= {ALONE: bad & (empty | kinds.alone), REAL: rest & kinds.real}
    return found | {UNKNOWN: bad & ~torch.stack(list(found.values())).any(0)}


def _per_sequence(dead: Tensor, padding: Tensor | None) -> Tensor:
    """Rows as (sequences, queries), with heads joined, even if they share a dimension with the sequences."""
    if dead.dim() >= 3:
        return dead.flatten(1, -2).any(1).cpu()
    if dead.dim() < 2:
        return dead.reshape(1, -1).cpu()
    sequences = dead.shape[0] if padding is None else padding.shape[0]
    if dead.shape[0] > sequences > 0 and dead.shape[0] % sequences == 0:
        dead = dead.reshape(sequences, -1, dead.shape[-1]).any(1)
    return dead.cpu()


def mask_arithmetic(first: Candidate) -> Origin | None:
    """The first bad value comes from the computation of a mask."""
    return _doubled(first) or _zero_times_infinity(first) or _plus_infinity(first)


def _doubled(first: Candidate) -> Origin | None:
    """Minus infinity from an addition to (about) the lowest finite number of the dtype."""
    adds = first.terminal.kind == "inf" and first.event.operation in ("add", "sub")
    if not adds or first.event.impurity.positive:
        return None
    deep = sum(_looks_masked(tensor) for _, tensor in first.inputs if tensor.is_floating_point())
    if not deep:
        return None
    what = (
        "two masks of the lowest finite number are added, which gives minus infinity: rows meant to be merely "
        "discouraged are fully masked"
        if deep > 1
        else "a negative score is added to a mask of the lowest finite number, which gives minus infinity"
    )
    return first.origin("bad_mask", what, "added_masks", masks_at_lowest=deep)


def _looks_masked(tensor: Tensor) -> bool:
    """Whether a tensor looks like a mask that hides with about the lowest finite number of its dtype.

    A mask is near zero where it lets through, and constant where it hides; overflowing activations are not.
    """
    depth = tensor.detach().double() / torch.finfo(tensor.dtype).min
    deep, shallow = depth[depth >= 0.5], depth[depth < 0.5]
    if not deep.numel() or float(deep.max() - deep.min()) > 0.02 or bool((shallow.abs() > 0.05).any()):
        return False
    return deep.numel() > 1 or float(deep.max()) > 0.99


def _zero_times_infinity(first: Candidate) -> Origin | None:
    if first.terminal.kind != "nan" or first.event.operation != "mul":
        return None
    flags = [tensor for _, tensor in first.inputs if bool(((tensor == 0) | (tensor == 1)).all())]
    if not first.event.infinite_scalar or not flags:
        return None
    return first.origin(
        "bad_mask",
        "0 times infinity is NaN: a mask is made by multiplying a 0/1 mask by minus infinity",
        "multiplied_mask",
    )


def _plus_infinity(first: Candidate) -> Origin | None:
    """Plus infinity in the mask of an attention, or in the scores that a softmax reads, which always gives NaN."""
    if first.terminal.kind != "nan" or first.event.operation not in (SDPA, *SOFTMAX):
        return None
    mask = first.named.get("attn_mask") if first.event.operation == SDPA else _scores_with_infinity(first)
    if not isinstance(mask, Tensor) or not mask.is_floating_point():
        return None
    count = int(torch.isposinf(mask).sum())
    if not count:
        return None
    holder = "the mask" if first.event.operation == SDPA else "the masked score"
    return first.origin(
        "bad_mask",
        f"{holder} is plus infinity in {count} of {mask.numel()} places, and a softmax over that is NaN: an additive "
        "mask has 0 where a query may attend, and minus infinity where it may not",
        "infinite_mask",
        plus_infinities=count,
        mask=facts(mask, "attn_mask"),
    )


def _scores_with_infinity(first: Candidate) -> Tensor | None:
    """The input of the softmax; the search found no operation that computed this infinity from finite numbers."""
    known = [operand for operand in first.event.operands if operand.source.kind != "unseen"]
    if not any(operand.impurity.positive for operand in known):
        return None
    return next((tensor for _, tensor in first.inputs), None)
