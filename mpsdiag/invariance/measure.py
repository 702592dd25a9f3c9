"""Whether padding changes the results of a model: each sequence alone against the same sequences in padded batches."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from torch import Tensor, nn

from mpsdiag.errors import BadInput, CannotDecide, one_of
from mpsdiag.findings import ArrangementResult, Invariance
from mpsdiag.inputs.batches import picture_token
from mpsdiag.inputs.modules import in_mode, move
from mpsdiag.invariance.alone_truth import AloneTruth, errors, has_decoder, reference_of, text_config, widen_bound
from mpsdiag.invariance.arrangements import EXTRA, SAMPLE, Arrangement, Example, alone, arrangements, examples_of
from mpsdiag.invariance.causes import ArrangementTrial, explain
from mpsdiag.quiet import errors_only
from mpsdiag.words import PADDING_SIDES

DOUBTFUL: Final = 10
"""Differences below this many bounds are examined twice, because the bound itself is a measured maximum."""


@errors_only("transformers")
def padding_invariance(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    padding_side: str | None = None,
    pad_token_id: int | None = None,
    generates: bool | None = None,
    causes: bool = True,
    sequences: int = SAMPLE,
) -> Invariance:
    """Compare the results of a model for sequences in padded batches with its results for each sequence alone.

    The reference is each sequence alone and unpadded, in float64 on the CPU; the bound is twice the error that eager
    attention or SDPA makes there in the model's dtype. The comparison covers logits at real positions, or hidden states
    and the pooled embedding.

    Args:
        model: A transformers model, on its device. It is in evaluation mode during the comparison.
        batch: `input_ids` and `attention_mask` of shape (sequences, positions), int64, on any device, and what else the
            model takes with one entry for each sequence. The shortest and the longest sequences are used.
        padding_side: The side in use, which counts for the verdict; by default that of the batch, `left` if unpadded.
        pad_token_id: The pad token; by default that of the batch or of the config.
        generates: Whether to compare generated tokens too; by default if the model can, with padding on the left.
        causes: Whether to look for the cause and try the fixes if something differs.
        sequences: Largest number of sequences to compare.

    Returns:
        Verdict, arrangements, cause and fixes.

    Raises:
        BadInput: The batch has no `input_ids`, or the model gives no output to compare.
    """
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise BadInput("The batch needs input_ids of shape (sequences, positions).")
    side = one_of("padding side", padding_side or _side_of(batch.get("attention_mask")), PADDING_SIDES)
    pad_id = _pad_id(model, batch) if pad_token_id is None else pad_token_id
    on_device = move(dict(batch), next(model.parameters()).device)
    examples = examples_of(on_device, limit=sequences, longest=_room(model), picture=picture_token(model))
    if not examples:
        raise BadInput("All sequences of the batch consist of padding only.")
    try:
        with in_mode(model, training=False, grad=False):
            return _measure(model, examples, side, pad_id, generates=generates, causes=causes)
    except CannotDecide as problem:
        return Invariance(verdict="undecided", reason=str(problem), padding_side=side)


def assert_padding_invariant(model: nn.Module, batch: Mapping[str, Any], **options: Any) -> None:
    """Raise an AssertionError if padding changes the results of a model.

    Args:
        model: As for `padding_invariance`.
        batch: Likewise.
        options: Likewise.

    Raises:
        AssertionError: They change, or nothing could be compared; the message lists arrangements, bound, cause, fixes.
    """
    found = padding_invariance(model, batch, **options)
    if found.verdict == "invariant":
        return
    rows = [
        f" {result.name:<16}{result.max_abs_diff:>14.6g}{result.allowed:>14.6g}  "
        + ("ok" if result.holds else "differs" if result.counts else "differs (does not count)")
        for result in found.arrangements
    ]
    fixes = [fix.name for fix in found.fixes if fix.restores]
    lines = [
        f"\nNot equal with and without padding\n\n{found.reason}",
        *([f" {'arrangement':<16}{'max abs diff':>14}{'allowed':>14}", *rows] if rows else []),
        *([f"Cause: {found.cause}"] if found.cause else []),
        *([f"Restored by: {', '.join(fixes)}"] if fixes else []),
    ]
    raise AssertionError("\n".join(lines))


def _measure(
    model: nn.Module, examples: list[Example], side: str, pad_id: int, *, generates: bool | None, causes: bool
) -> Invariance:
    can = bool(getattr(model, "can_generate", bool)()) and not has_decoder(model)
    generating = (can and side == "left") if generates is None else generates
    truth = reference_of(model, examples)
    padded = list(arrangements(examples, pad_id=pad_id, padding_side=side, picture=picture_token(model)))
    if generating:
        left = next(arrangement for arrangement in padded if arrangement.name == "left")
        padded.append(Arrangement("generate", left.batch, left.rows, generates=True))
    trials = [_trial("alone", alone(examples), model, truth), *(_trial(a.name, [a], model, truth) for a in padded)]
    if any(trial.result.allowed < trial.result.max_abs_diff < DOUBTFUL * trial.result.allowed for trial in trials):
        widen_bound(model, truth)
        trials = [_judged(trial, truth.allowed) for trial in trials]
    failed = [trial for trial in trials if not trial.result.holds and trial.result.counts]
    found = Invariance(
        verdict="varies" if failed else "invariant",
        padding_side=side,
        reason="each sequence gives the same numbers alone and in every padded batch, within the bound",
        arrangements=[trial.result for trial in trials],
        by_position={
            trial.result.name: [float(f"{error:.3g}") for error in trial.errors] for trial in trials if trial.errors
        },
    )
    if not failed:
        return found
    worst = max(failed, key=lambda trial: trial.result.max_abs_diff)
    off = f"off by {worst.result.max_abs_diff:.3g}, {worst.result.allowed:.3g} is allowed"
    what = "the tokens" if worst.result.name == "generate" else "the numbers at real positions"
    found.reason = f"{worst.result.name}: {what} are {off if worst.result.finite else 'not finite'}"
    if causes:
        explain(found, model, examples, failed, truth)
    return found


def _trial(name: str, batches: list[Arrangement], model: nn.Module, truth: AloneTruth) -> ArrangementTrial:
    found = [errors(model, arrangement, truth) for arrangement in batches]
    off = max(map(max, found))
    result = ArrangementResult(name=name, max_abs_diff=off, allowed=0.0, holds=False, counts=batches[0].counts)
    by_position = [] if batches[0].generates else [max(at) for at in itertools.zip_longest(*found, fillvalue=0.0)]
    return _judged(ArrangementTrial(result, batches, by_position), truth.allowed)


def _judged(trial: ArrangementTrial, allowed: float) -> ArrangementTrial:
    if trial.batches[0].generates:
        allowed *= 2  # two logits may be off
    holds = trial.result.max_abs_diff <= allowed
    return replace(trial, result=trial.result.model_copy(update={"allowed": allowed, "holds": holds}))


def _side_of(mask: Any) -> str:
    """The side of a batch's padding; left if it has none."""
    if not isinstance(mask, Tensor) or mask.dim() != 2 or bool(mask.bool().all()):
        return "left"
    return "right" if bool(mask[:, 0].bool().all()) else "left"


def _pad_id(model: Any, batch: Mapping[str, Any]) -> int:
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask.bool().all()):
        return int(batch["input_ids"][~mask.bool()][0])
    text = text_config(model)
    found = getattr(text, "pad_token_id", None)
    return int(found) if isinstance(found, int) and found >= 0 else 0


def _room(model: Any) -> int | None:
    """Largest number of tokens of a sequence such that the longer neighbour and new tokens fit too."""
    text = text_config(model)
    positions = getattr(text, "max_position_embeddings", None)
    return max(1, positions - 3 * EXTRA) if isinstance(positions, int) else None
