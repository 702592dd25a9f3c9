"""Why padding changes the results of a model: each cause is tested by an intervention, none is assumed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mpsdiag.emulation.mode import suspended
from mpsdiag.findings import ArrangementResult, FixTried, Invariance, InvarianceCause
from mpsdiag.inputs.batches import picture_token
from mpsdiag.inputs.modules import copy_to_cpu, to_cpu
from mpsdiag.invariance.alone_truth import AloneTruth, distance, in_attention, outputs_of, reference_of, takes_positions
from mpsdiag.invariance.arrangements import Arrangement, Example, alone, companions, scrambled
from mpsdiag.sdpa.float64 import largest_error

SENTENCES: dict[InvarianceCause, str] = {
    "positions": "the model numbers positions from the left edge, padding included",
    "attention": "attention gives different numbers on padded batches",
    "mask_leak": "tokens under the attention mask reach real positions",
    "model": "the model's own numbers depend on what else is in the batch",
    "device": "this device gives different numbers on padded batches, and the CPU does not",
}


@dataclass(frozen=True)
class ArrangementTrial:
    """An arrangement that was compared; for `alone`, `batches` has one batch for each sequence."""

    result: ArrangementResult
    batches: list[Arrangement]
    errors: list[float] = field(default_factory=list)
    """The difference by position; empty for generated tokens."""


def explain(
    found: Invariance,
    model: nn.Module,
    examples: Sequence[Example],
    failed: Sequence[ArrangementTrial],
    truth: AloneTruth,
) -> None:
    """Run the interventions on what failed, and write into `found` what they show; no gradients are wanted here."""
    restores = _tried(model, failed, truth)
    on_cpu = _cpu_fails(model, failed, truth)
    if restores.get("positions"):
        cause: InvarianceCause = "positions"
    elif restores.get("eager") or restores.get("eager + positions"):
        cause = "attention"
    elif not _depends_on_company(model, examples) and _leaks(model, failed, truth.allowed):
        cause = "mask_leak"
    else:
        cause = "model" if on_cpu else "device"
    sentence = SENTENCES[cause]
    if cause == "attention" and not restores.get("eager"):
        sentence += f", and {SENTENCES['positions']}"
    if cause == "model" and _routes_by_company(model, examples, truth.allowed):
        sentence = "the routing to experts depends on what else is in the batch"
    found.cause, found.every_device = cause, on_cpu
    found.fixes = [FixTried(name=name, restores=does) for name, does in restores.items()]
    found.reason = f"{sentence}{', on every device' if on_cpu else ''}: {found.reason}"


def _tried(model: nn.Module, failed: Sequence[ArrangementTrial], truth: AloneTruth) -> dict[str, bool]:
    """Which fixes restore invariance: position ids, then attention, then both. Only fixes that were run are listed."""
    found: dict[str, bool] = {}
    moves = takes_positions(model)
    if moves:
        found["positions"] = _all_hold(model, failed, truth, positions=True)
    for positions in (False, True) if moves else (False,):
        if any(found.values()):
            break
        for name in ("eager", "safe_sdpa"):
            with in_attention(model, name):
                restores = _all_hold(model, failed, truth, positions=positions)
            found[f"{name} + positions" if positions else name] = restores
    return found


def _all_hold(
    model: nn.Module, failed: Sequence[ArrangementTrial], truth: AloneTruth, *, positions: bool = False
) -> bool:
    return all(
        distance(model, arrangement, truth, positions=positions) <= trial.result.allowed
        for trial in failed
        for arrangement in trial.batches
    )


def _cpu_fails(model: nn.Module, failed: Sequence[ArrangementTrial], truth: AloneTruth) -> bool:
    """Whether stock attention on the CPU shows it too, with the same weights in the same dtype."""
    moved = [replace(trial, batches=[replace(a, batch=to_cpu(a.batch)) for a in trial.batches]) for trial in failed]
    with suspended():
        twin = copy_to_cpu(model)
        with in_attention(twin, "sdpa"):
            return not _all_hold(twin, moved, truth)


def _depends_on_company(model: nn.Module, examples: Sequence[Example]) -> bool:
    """Whether sequences of equal length, which need no padding, differ between alone and together."""
    cut, together = companions(examples)
    truth = reference_of(model, cut)
    return distance(model, together, truth) > truth.allowed


def _leaks(model: nn.Module, failed: Sequence[ArrangementTrial], allowed: float) -> bool:
    """Whether other tokens under the mask change the output at real positions."""
    for arrangement in (a for trial in failed for a in trial.batches if not a.generates):
        if bool(arrangement.batch["attention_mask"].all()):
            continue
        before = outputs_of(model, arrangement)
        after = outputs_of(model, scrambled(arrangement, picture_token(model)))
        pairs = [p for one, other in zip(before, after, strict=True) for p in zip(one, other, strict=True)]
        if any(not largest_error(mine, other.cpu()) <= allowed for mine, other in pairs):
            return True
    return False


def _routes_by_company(model: nn.Module, examples: Sequence[Example], allowed: float) -> bool:
    """Whether a router of a mixture of experts treats the same tokens differently beside other sequences."""
    cut, together = companions(examples)
    routers = [module for name, module in model.named_modules() if _is_router(name, module)]
    single = [_routed(model, routers, batch) for batch in alone(cut)]
    for number, (given, answers) in enumerate(_routed(model, routers, together)):
        before = torch.cat([calls[number][0] for calls in single])
        after = [torch.cat(parts) for parts in zip(*(calls[number][1] for calls in single), strict=True)]
        if largest_error(given, before) > allowed:
            return False  # its input already differs
        if any(largest_error(mine, right) > allowed for mine, right in zip(answers, after, strict=True)):
            return True
    return False


def _is_router(name: str, module: nn.Module) -> bool:
    return name.rpartition(".")[2] in ("gate", "router") or "router" in type(module).__name__.lower()


def _routed(
    model: nn.Module, routers: Sequence[nn.Module], arrangement: Arrangement
) -> list[tuple[Tensor, list[Tensor]]]:
    """The inputs of each router and its floating outputs, token by token, in a forward."""
    calls: list[tuple[Tensor, list[Tensor]]] = []

    def note(_: nn.Module, given: Any, output: Any) -> None:
        answers = output if isinstance(output, tuple | list) else [output]
        kept = [one.flatten(0, -2).cpu() for one in answers if isinstance(one, Tensor) and one.is_floating_point()]
        calls.append((given[0].flatten(0, -2).cpu(), kept))

    hooks = [router.register_forward_hook(note) for router in routers]
    try:
        outputs_of(model, arrangement)
    finally:
        for hook in hooks:
            hook.remove()
    return calls
