"""Values too large for their dtype, and values that only this device makes non-finite. Decided by running it again."""

from __future__ import annotations

import torch
from torch import Tensor

from mpsdiag.findings import Advice
from mpsdiag.tracing.causes.root_cause import Candidate, Explanation
from mpsdiag.tracing.watch.events import Call
from mpsdiag.tracing.watch.operations import SDPA
from mpsdiag.tracing.watch.replay import replay
from mpsdiag.tracing.watch.scores import scores_of
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


def overflow(birth: Candidate) -> Explanation | None:
    """Finite inputs, and a result (or a score on the way to it) beyond the largest number of the dtype."""
    output = birth.output
    if birth.call is None or output is None:
        return None
    bound = torch.finfo(output.dtype).max
    if birth.event.infinite_scalar and birth.terminal.kind == "inf":
        return None  # The infinity was among the arguments.
    if birth.event.operation in _CASTS and _largest_input(birth) > bound:
        return _overflowed(birth, output, _largest_input(birth))
    if birth.event.operation == SDPA:
        scores = scores_of(birth.named)
        score = 0.0 if scores is None else largest(scores)
        if score > torch.finfo(birth.named["query"].dtype).max:
            return _overflowed(birth, output, score, "a score of query and key")
    return _replayed_overflow(birth, birth.call, output)


def _replayed_overflow(birth: Candidate, call: Call, output: Tensor) -> Explanation | None:
    """Decide by what float64 gives for the same inputs where the output is not finite."""
    bound = torch.finfo(output.dtype).max
    exact = replay(call, torch.float64)
    if exact is None or exact.shape != output.shape:
        return None
    bad = ~torch.isfinite(output.detach().cpu())
    reached = exact[bad].abs()
    finite = reached[torch.isfinite(reached)]
    if finite.numel() and float(finite.max()) > bound:
        return _overflowed(birth, output, float(finite.max()))
    if finite.numel():
        plain = replay(call)
        if plain is not None and bool((~torch.isfinite(plain[bad])).any()):
            return _overflowed(birth, output, _largest_input(birth), "a value on the way")
        return None
    if birth.terminal.kind == "inf" and birth.event.operation not in _POLES:
        return _overflowed(birth, output, float("inf"))
    return None


def device_only(birth: Candidate) -> Explanation | None:
    """The CPU gives finite values for the very same inputs in the same dtype: the device's kernel is to blame."""
    output = birth.output
    if birth.call is None or output is None or birth.device == "cpu":
        return None
    plain = replay(birth.call)
    if plain is None or plain.shape != output.shape:
        return None
    bad = ~torch.isfinite(output.detach().cpu())
    if not bool(torch.isfinite(plain[bad]).all()):
        return None
    return Explanation(
        "wrong_device",
        f"{birth.event.operation} gives {int(bad.sum())} non-finite values on {birth.device}, and finite ones on the "
        "CPU with the same inputs",
        Advice(
            text="A defect of this device's kernel. Find out which, keep this operation off the device, and report it "
            "with a script that stands alone.",
            commands=["mpsdiag check --level 3", "mpsdiag trace ... --repro repro.py"],
        ),
        {"device": birth.device, "cpu_largest": largest(plain)},
    )


def _largest_input(birth: Candidate) -> float:
    return max((largest(tensor) for _, tensor in birth.inputs), default=0.0)


def _overflowed(birth: Candidate, output: Tensor, value: float, what: str = "the result") -> Explanation:
    dtype = str(output.dtype).removeprefix("torch.")
    bound = torch.finfo(output.dtype).max
    source = _largest_input(birth)
    beyond = f"{what} reaches {value:.4g}" if value > bound else f"{what} is too large"
    return Explanation(
        "overflow",
        f"{birth.event.operation} overflows {dtype}: {beyond}, the largest {dtype} is {bound:.5g}; its largest finite "
        f"input is {source:.5g}",
        _REMEDIES.get(output.dtype, _OF_FLOAT32),
        {"largest_input": source, "largest_result": value, "largest_of_dtype": bound, "dtype": dtype},
    )
