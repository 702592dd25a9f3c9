"""`mpsdiag run --check`: exposure and padding invariance of a script's own model on its first batches."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mpsdiag.errors import first_line
from mpsdiag.fixes.process import install
from mpsdiag.inputs.modules import in_mode
from mpsdiag.invariance.measure import padding_invariance
from mpsdiag.scenario.exposure import predict
from mpsdiag.tracing.process.forwards import WatchedForward
from mpsdiag.tracing.process.watched import ScriptCheck
from mpsdiag.tracing.watch.model_state import device_label
from mpsdiag.tracing.watch.tensors import fresh
from mpsdiag.tracing.watch.tracer import flag_of, is_up

BATCHES = 4
"""How many batches of the script are checked."""
FIXES = ("eager", "safe_sdpa")


def check_forwards(forwards: Sequence[WatchedForward], *, evaluation: bool) -> ScriptCheck:
    """Check the model of some calls with their batches, in evaluation mode and without gradients."""
    model = forwards[0].model
    found = ScriptCheck(
        model=type(model).__name__, device=device_label(model), batches=len(forwards), evaluation=evaluation
    )
    try:
        _look(found, [forward for forward in forwards if forward.model is model])
    except Exception as problem:  # noqa: BLE001 - whatever the model raises now, the script did not
        found.notes.append(f"not everything could be checked: {first_line(problem)}")
    return found


def _look(found: ScriptCheck, forwards: Sequence[WatchedForward]) -> None:
    batches: list[Mapping[str, Any]] = []
    for forward in forwards:
        with forward.again() as (model, batch), in_mode(model, training=False, grad=False):
            batches.append(batch)
            found.finite = _finite(model, batch) and found.finite
            for name in FIXES:
                with install(name):
                    found.fixes[name] = _finite(model, batch) and found.fixes.get(name, True)
    config = getattr(forwards[0].model, "config", None)
    if config is not None:
        found.exposure = predict(config, batches, attention=getattr(config, "_attn_implementation", "sdpa"))
    padded = max(range(len(batches)), key=lambda number: _padding(batches[number]))
    if not _padding(batches[padded]):
        found.notes.append("no batch has input_ids and padding in its attention_mask: invariance was not checked")
        return
    with forwards[padded].again() as (model, batch):
        found.invariance = padding_invariance(model, {k: v for k, v in batch.items() if isinstance(v, Tensor)})
    if found.invariance.verdict == "varies":
        restores = {fix.name: fix.restores for fix in found.invariance.fixes}
        found.fixes = {name: right and restores.get(name, False) for name, right in found.fixes.items()}
        found.fixes |= {name: True for name, right in restores.items() if right and name not in FIXES}


def _finite(model: nn.Module, batch: Mapping[str, Any]) -> bool:
    flag = flag_of(model(**fresh(batch)))
    return flag is None or not is_up(float(flag))


def _padding(batch: Mapping[str, Any]) -> int:
    """How many positions of a batch are padding; 0 if unknown."""
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    if not isinstance(ids, Tensor) or not isinstance(mask, Tensor) or mask.shape != ids.shape or ids.dim() != 2:
        return 0
    return int((mask == 0).sum())
