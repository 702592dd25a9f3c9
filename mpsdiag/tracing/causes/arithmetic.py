"""Values too large for their dtype, values that only this device makes non-finite, and what no rule explains.

Decided by running the call again, on the CPU and in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpsdiag.findings import Advice
from mpsdiag.sdpa.watch import SDPA
from mpsdiag.tracing.causes.root_cause import Candidate, Explanation
from mpsdiag.tracing.watch.operations import TorchCall
from mpsdiag.tracing.watch.replay import replay, scores_of
from mpsdiag.tracing.watch.tensors import largest

_CASTS = ("to", "half", "type", "type_as", "copy_", "bfloat16", "float")
_POLES = ("div", "reciprocal", "rsqrt", "log", "log2", "log10", "sqrt", "acos", "asin", "atanh")

_REMEDIES = {
    torch.float16: Advice(
        text="Use bfloat16, which has the range of float32, or float32, at least for this module.",
        commands=[
            'AutoModelForCausalLM.from_pretrained(..., dtype="bfloat16")',
            "mpsdiag trace ... --dtype bfloat16",
        ],
    ),
    torch.bfloat16: Advice(
        text="Even the range of float32 is not enough: look at the scale of the weights and inputs of this module.",
        commands=["mpsdiag trace ... --dtype float32"],
    ),
}
_OF_FLOAT32 = Advice(
    text="Values this large do not come from healthy weights: look at the scale of the weights and inputs of this "
    "module, at the learning rate, and at the step since which they grow.",
    commands=["mpsdiag trace ... --train"],
)

_HINTS = {
    "div": "a division by zero",
    "reciprocal": "a division by zero",
    "rsqrt": "the root of zero or of a negative number",
    "sqrt": "the root of a negative number",
    "log": "the logarithm of zero or of a negative number",
}


def overflow(first: Candidate) -> Explanation | None:
    """Finite inputs, and a result (or a score on the way to it) beyond the largest number of the dtype."""
    output = first.output
    if first.call is None or output is None:
        return None
    bound = torch.finfo(output.dtype).max
    if first.event.infinite_scalar and first.terminal.kind == "inf":
        return None  # The infinity was among the arguments.
    if first.event.operation in _CASTS and _largest_input(first) > bound:
        return _overflowed(first, output, _largest_input(first))
    if first.event.operation == SDPA:
        scores = scores_of(first.named)
        score = 0.0 if scores is None else largest(scores)
        if score > torch.finfo(first.named["query"].dtype).max:
            return _overflowed(first, output, score, "a score of query and key")
    return _replayed_overflow(first, first.call, output)


def _replayed_overflow(first: Candidate, call: TorchCall, output: Tensor) -> Explanation | None:
    """Decide by what float64 gives for the same inputs where the output is not finite."""
    bound = torch.finfo(output.dtype).max
    exact = replay(call, torch.float64)
    if exact is None or exact.shape != output.shape:
        return None
    bad = ~torch.isfinite(output.detach().cpu())
    reached = exact[bad].abs()
    finite = reached[torch.isfinite(reached)]
    if finite.numel() and float(finite.max()) > bound:
        return _overflowed(first, output, float(finite.max()))
    if finite.numel():
        plain = replay(call)
        if plain is not None and bool((~torch.isfinite(plain[bad])).any()):
            return _overflowed(first, output, _largest_input(first), "a value on the way")
        return None
    if first.terminal.kind == "inf" and first.event.operation not in _POLES:
        return _overflowed(first, output, float("inf"))
    return None


def device_only(first: Candidate) -> Explanation | None:
    """The CPU gives finite values for the very same inputs in the same dtype: the device's kernel is to blame."""
    output = first.output
    if first.call is None or output is None or first.device == "cpu":
        return None
    plain = replay(first.call)
    if plain is None or plain.shape != output.shape:
        return None
    bad = ~torch.isfinite(output.detach().cpu())
    if not bool(torch.isfinite(plain[bad]).all()):
        return None
    return Explanation(
        "wrong_device",
        f"{first.event.operation} gives {int(bad.sum())} non-finite values on {first.device}, and finite "
        "ones on the CPU with the same inputs",
        Advice(
            text="A defect of this device's kernel. Find out which, keep this operation off the device, and report it "
            "with a script that stands alone.",
            commands=["mpsdiag check --level 3", "mpsdiag trace ... --repro repro.py"],
        ),
        {"device": first.device, "cpu_largest": largest(plain)},
    )


def _largest_input(first: Candidate) -> float:
    return max((largest(tensor) for _, tensor in first.inputs), default=0.0)


def _overflowed(first: Candidate, output: Tensor, value: float, what: str = "the result") -> Explanation:
    dtype = str(output.dtype).removeprefix("torch.")
    bound = torch.finfo(output.dtype).max
    source = _largest_input(first)
    beyond = f"{what} reaches {value:.4g}" if value > bound else f"{what} is too large"
    return Explanation(
        "overflow",
        f"{first.event.operation} overflows {dtype}: {beyond}, the largest {dtype} is {bound:.5g}; its largest "
        f"finite input is {source:.5g}",
        _REMEDIES.get(output.dtype, _OF_FLOAT32),
        {"largest_input": source, "largest_result": value, "largest_of_dtype": bound, "dtype": dtype},
    )


def unknown(first: Candidate) -> Explanation:
    """The place is known, the reason is not."""
    event = first.event
    hint = _HINTS.get(event.operation)
    guess = f"; {hint}?" if hint else ""
    made = "NaN" if event.impurity.nan else "an infinity"
    where = "comes out of" if first.terminal.kind in ("nan", "inf") else "comes, from out of sight, into"
    return Explanation(
        "unknown",
        f"{made} {where} {event.operation}, and no known cause fits{guess}",
        Advice(
            text="Look at the inputs' ranges in the evidence. A script with this operation alone, to be reported:",
            commands=["mpsdiag trace ... --repro repro.py"],
        ),
        {"device": first.device},
    )
