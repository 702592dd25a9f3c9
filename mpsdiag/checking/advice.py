"""From the evidence: why a scenario went wrong, what to do about it, and why a fix helps or not."""

import math
from collections.abc import Sequence
from contextlib import ExitStack

from mpsdiag.checking.diagnosis import FixResult, Judged, ProbeResult
from mpsdiag.device import kind_of
from mpsdiag.errors import CannotDecide
from mpsdiag.findings import Advice, Blame, Emulated
from mpsdiag.scenario.scenario import LEARNING_RATE, Measured, Scenario, finite
from mpsdiag.words import PADDING_SIDES

DEAD_ROWS = "SDPA001"
CURED_BY = {"mps": "2.9", "cpu": "2.5", "cuda": "2.5"}
"""By kind of device, the first torch release whose attention gives zeros for fully masked rows."""
BOTH_WAYS = (
    "this is not a causal model: each query sees every real token, on both sides, so that only a sequence of padding "
    "only leaves one without a key"
)


def why(name: str, outcome: Measured) -> str:
    """Why a fix, an attention mode or trainer variant, resolves the scenario or not: from the run with it in place."""
    if outcome.status != "ok":
        if name == "cpu_loss":
            return (
                "the logits are already NaN when they reach the CPU: the NaN arises in attention, "
                "in the forward, before the loss"
            )
        return outcome.reason
    if outcome.exact:
        return "equal to the float64 reference within rounding, even at padded positions"
    return (
        "correct at real positions; fully masked rows get values other than zeros, and the label of the first real "
        f"token is predicted from one, which moves eval_loss by {outcome.loss_moved_by:+.2g}"
    )


def advise(
    verdict: Judged,
    probes: Sequence[ProbeResult],
    scenario: Measured | None,
    case: Scenario,
    fixes: Sequence[FixResult],
    emulated: Emulated | None,
) -> list[Advice]:
    """Turn the evidence into next steps, the most useful one first."""
    other = _other_cause(scenario)
    if verdict.verdict == "undecided" and other is not None:
        return [other]
    if verdict.verdict == "undecided":
        return [Advice(text=f"Undecided: {verdict.reason}.", commands=["mpsdiag env"])]
    if verdict.verdict == "not_affected":
        return [_clean(scenario, probes)]
    advice = _about_padding(scenario)
    dead_row_bug = any(probe.id == DEAD_ROWS and probe.status == "fail" for probe in probes)
    exact = [fix.name for fix in fixes if fix.resolves and fix.exact]
    if "safe_sdpa" in exact or (dead_row_bug and scenario is None):
        advice.append(
            Advice(
                text="Use safe_sdpa, in one line: the same kernel, exact (fully masked rows are zeros, as on the CPU).",
                commands=['mpsdiag.install("safe_sdpa")', "mpsdiag run --fix safe_sdpa your_script.py"],
            )
        )
    if dead_row_bug and (emulated is not None or kind_of(case.device) in CURED_BY):
        kind = "mps" if emulated is not None else kind_of(case.device)
        advice.append(
            Advice(
                text=f"Or use a torch release whose attention on {kind} gives zeros for fully masked rows "
                f"({CURED_BY[kind]} and later), and check again: later releases have other defects.",
                commands=[f'pip install -U "torch>={CURED_BY[kind]}"', "mpsdiag check --level 3"],
            )
        )
    if dead_row_bug and scenario is not None and scenario.status == "ok":
        advice.insert(0, _escaped(scenario, case, emulated))
    if scenario is not None and scenario.nonfinite_batches and finite(scenario.stock_eval_loss):
        advice.append(
            Advice(
                text="This transformers release hides it by default: batches with a non-finite loss are left "
                f"out, and eval_loss is printed as {scenario.stock_eval_loss:.4f}.",
                commands=["TrainingArguments(logging_nan_inf_filter=False)"],
            )
        )
    if other is not None:
        advice.append(other)
    advice.extend(remedy for probe in probes if (remedy := _remedy(probe)) is not None)
    return advice


def _other_cause(scenario: Measured | None) -> Advice | None:
    """The remedy for a cause other than this device's attention, such as bad weights."""
    found = None if scenario is None else scenario.cause
    return None if found is None or found.cause in ("dead_rows", "wrong_device") else found.remedy


def _remedy(probe: ProbeResult) -> Advice | None:
    """The catalogue's remedy for a failed probe, except for fully masked rows, which are handled above."""
    if probe.status != "fail" or probe.id == DEAD_ROWS or probe.remedy is None:
        return None
    return Advice(text=f"{probe.id}: {probe.remedy.text}", commands=probe.remedy.commands)


def _about_padding(scenario: Measured | None) -> list[Advice]:
    """Which of the fixes that were tried restores the numbers of each sequence alone."""
    found = None if scenario is None else scenario.invariance
    if found is None or found.verdict != "varies":
        return []
    words = next((fix.name.split(" + ") for fix in found.fixes if fix.restores and "eager" not in fix.name), None)
    if words is not None and "positions" in words:
        options = " ".join(f"--fix {word}" for word in words)
        return [
            Advice(
                text="Make position ids from the attention mask: the model then gives the numbers of each sequence "
                f"alone{' together with ' + words[0] if len(words) > 1 else ''}.",
                commands=[*(f'mpsdiag.install("{word}")' for word in words), f"mpsdiag run {options} your_script.py"],
            )
        ]
    other = next((result for result in found.arrangements if result.name in PADDING_SIDES and not result.counts), None)
    if words is None and other is not None and other.holds:
        return [
            Advice(
                text=f"Pad on the {other.name}: there the numbers are those of each sequence alone.",
                commands=[f'tokenizer.padding_side = "{other.name}"'],
            )
        ]
    if words is None and found.cause in ("model", "mask_leak"):
        return [Advice(text="No fix restores it: evaluate one sequence at a time, or only sequences of one length.")]
    return []


def _clean(scenario: Measured | None, probes: Sequence[ProbeResult]) -> Advice:
    passed = [probe.id for probe in probes if probe.status == "pass"]
    if scenario is None and DEAD_ROWS in passed:
        return Advice(text="Fully masked rows come out correct. Level 2 tries them through transformers.")
    if scenario is None:
        return Advice(text=f"The probes that ran passed: {', '.join(passed)}.")
    if scenario.dead_rows == 0 and _sees_both_ways(scenario):
        return Advice(text=f"Nothing to fix, but the scenario had no fully masked row: {BOTH_WAYS}.")
    if masks := _masks_that_help(scenario):
        return Advice(text=f"Nothing to fix, but no fully masked row reached attention: {masks}.")
    if scenario.dead_rows == 0:
        return Advice(
            text="Nothing to fix, but the scenario had no fully masked row: without padding on the left (or a "
            "sliding window) it cannot show this defect."
        )
    return Advice(text=f"Nothing to fix: {scenario.dead_rows} fully masked rows reached attention and did no harm.")


def _sees_both_ways(scenario: Measured) -> bool:
    return scenario.exposure is not None and not scenario.exposure.causal


def _masks_that_help(scenario: Measured) -> str | None:
    """Why no predicted row reached attention, according to the run; None if one did or none was predicted."""
    found = scenario.exposure
    if scenario.dead_rows or found is None or not found.rows or found.reach_sdpa or not found.notes:
        return None
    return found.notes[-1]


def _escaped(scenario: Measured, case: Scenario, emulated: Emulated | None) -> Advice:
    """The kernel fails but the model is not affected: why, and what would change that."""
    if scenario.dead_rows == 0 and _sees_both_ways(scenario):
        return Advice(
            text=f"The kernel fails on fully masked rows, but this scenario has none: {BOTH_WAYS}.",
            commands=["mpsdiag check --model A_CAUSAL_MODEL"],
        )
    if masks := _masks_that_help(scenario):
        return Advice(
            text=f"The kernel fails on fully masked rows, and none reached it: {masks}. "
            "tiny-llama would show the defect.",
            commands=["mpsdiag check --model tiny-llama"] if case.model != "tiny-llama" else [],
        )
    if scenario.dead_rows == 0:
        return Advice(
            text="The kernel fails on fully masked rows, but this scenario has none, so it comes out finite. "
            "These would bring them in: padding on the left with sequences of unequal length, pad_to_multiple_of, "
            "a sliding window with long padding, a sequence of padding only.",
            commands=["mpsdiag check --padding-side left"] if case.padding_side != "left" else [],
        )
    if scenario.noncontiguous_dead_calls:
        where = f" on macOS {emulated.macos}" if emulated and emulated.macos < 15 else ""
        where = f"torch {emulated.release}{where}" if emulated else "This torch release on this macOS"
        newer = ", macOS 15 or newer" if emulated and emulated.release != "2.5" else ""
        return Advice(
            text=f"The kernel gives NaN for contiguous tensors, but {case.model} passes SDPA a query that is not "
            f"contiguous (a transposed view). {where} sends it down the composite path, where a fully masked row "
            "gives zeros. These would make it reach the kernel: a .contiguous() before the attention, a model or a "
            f"library that makes contiguous heads{newer}, another torch release.",
            commands=['mpsdiag.install("safe_sdpa")'],
        )
    return Advice(
        text="The kernel fails on fully masked rows, but this model's evaluation comes out finite: it does not "
        "reach that kernel. Another model, dtype or release may.",
        commands=['mpsdiag.install("safe_sdpa")'],
    )


def blame(case: Scenario, outcome: Measured) -> Blame | None:
    """Build the case anew and trace it, its training where that went wrong: the cause of a bad outcome.

    None where the scenario is right, or where its batches come out right when they are traced.
    """
    if outcome.status == "ok":
        return None
    from mpsdiag.inputs.installed import as_on_mps
    from mpsdiag.scenario.preparation import prepare
    from mpsdiag.tracing.passes.forward import trace_batches
    from mpsdiag.tracing.passes.training import trace_training

    with ExitStack() as stack:
        stack.enter_context(as_on_mps(case.emulation))
        prepared = stack.enter_context(prepare(case))
        try:
            if not all(math.isfinite(loss) for loss in outcome.train_losses):
                batches, steps = prepared.train_batches, case.max_steps
                origin = trace_training(prepared.model, batches, LEARNING_RATE, steps=steps).origin
            else:
                origin = trace_batches(prepared.model, prepared.eval_batches).origin
        except CannotDecide:  # The forward fails here too, which the outcome already reports.
            return None
    if origin is None:
        return None
    return Blame.model_validate(origin)
