"""Values too large for their dtype, values that only this device makes non-finite, and unexplained values.

The decision is made by running the call again, on the CPU and in float64.
"""

from typing import cast

import torch
from torch import Tensor

from mpsdiag.sdpa.watch import SDPA
from mpsdiag.tracing.causes.root_cause import Candidate
from mpsdiag.tracing.origin import Origin
from mpsdiag.tracing.watch.calls import LOSSES, POLES, TorchCall, replay, scores_of
from mpsdiag.tracing.watch.tensors import largest, listed

_CASTS = ("to", "half", "type", "type_as", "copy_", "bfloat16", "float")
_SPREADS = ("std", "var", "std_mean", "var_mean")
_POLES = (*POLES, "atanh", "logit", "log1p", "erfinv", "lgamma", "tan")


_HINTS = {
    **dict.fromkeys(("div", "reciprocal"), "a division by zero"),
    "rsqrt": "the root of zero or of a negative number",
    "sqrt": "the root of a negative number",
    **dict.fromkeys(("log", "log2", "log10"), "the logarithm of zero or of a negative number"),
    "logit": "the logarithm of zero",
    **dict.fromkeys(("acos", "asin"), "an argument beyond 1"),
    "atanh": "an argument of 1 or beyond",
    "pow": "a root of a negative number",
    "batch_norm": "the root of a negative running variance",
}


def overflow(first: Candidate) -> Origin | None:
    """Finite inputs, but a result (or an intermediate score) beyond the largest number of the dtype."""
    output = first.output
    if first.call is None or output is None:
        return None
    bound = torch.finfo(output.dtype).max
    if first.terminal.kind == "inf" and (first.event.infinite_scalar or first.event.operands):
        return None  # The infinity was among the arguments.
    if first.event.operation in _CASTS and _largest_input(first) > bound:
        return _overflowed(first, output, _largest_input(first))
    if first.event.operation == SDPA:
        scores = scores_of(first.named)
        score = 0.0 if scores is None else largest(scores)
        if score > torch.finfo(first.named["query"].dtype).max:
            return _overflowed(first, output, score, "a score of query and key")
    return _replayed_overflow(first, first.call, output)


def _replayed_overflow(first: Candidate, call: TorchCall, output: Tensor) -> Origin | None:
    """Decide by the float64 result of the same inputs where the output is non-finite."""
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
            return _overflowed(first, output, _largest_input(first), "an intermediate value")
        return None
    if first.terminal.kind == "inf" and first.event.operation not in (*_POLES, *LOSSES):
        return _overflowed(first, output, float("inf"))
    return None


def division_by_zero(first: Candidate) -> Origin | None:
    """A divisor is zero where the result is non-finite: in a quotient, a mean, a standard deviation or a norm."""
    output = first.output
    if first.call is None or output is None or first.event.operands or first.terminal.kind == "error":
        return None
    found = _zero_divisor(first, ~torch.isfinite(output.detach()))
    if found is None:
        return None
    what, count = found
    return first.origin(
        "division_by_zero", f"{first.event.operation} divides by zero: {what}", "division_by_zero", zero_divisors=count
    )


def _zero_divisor(first: Candidate, bad: Tensor) -> tuple[str, int] | None:
    """Which divisor is zero, and in how many of the bad values."""
    zero, what = _zeros(first, bad)
    if bool(zero.any()):
        return f"{what} in {int(zero.sum())} of {bad.numel()} values", int(zero.sum())
    operation, named, everywhere = first.event.operation, first.named, int(bad.sum())
    source = next((tensor for _, tensor in first.inputs), None)
    if operation == "corrcoef":
        return "a constant row has a standard deviation of zero", everywhere
    if operation in _SPREADS and source is not None and source.numel() <= bad.numel():
        return "the standard deviation of one value divides by n - 1, which is zero", everywhere
    if any(tensor.numel() == 0 for _, tensor in first.inputs if tensor.is_floating_point()):
        return "the mean of an empty input", everywhere
    weight, target = named.get("weight"), named.get("target")
    if operation in LOSSES and isinstance(weight, Tensor) and isinstance(target, Tensor):
        counted = target[(target >= 0) & (target < weight.numel())]
        if not target.is_floating_point() and not bool(weight[counted].any()):
            return "the class weights of all targets sum to zero", everywhere
    variance = named.get("argument 2") if operation == "batch_norm" else None
    negative = isinstance(variance, Tensor) and bool((variance < 0).any())
    if (operation.endswith("norm") or operation == "normalize") and not negative:
        exact = replay(cast("TorchCall", first.call), torch.float64)
        same = exact is not None and exact.shape == bad.shape
        if exact is not None and same and not bool(torch.isfinite(exact[bad.cpu()]).any()):
            return "the norm or standard deviation of a constant row is zero, and so is eps", everywhere
    return None


def _zeros(first: Candidate, bad: Tensor) -> tuple[Tensor, str]:
    """Where the divisor of a quotient is zero and the result is bad, and what the divisor is."""
    operation, args = first.event.operation, list(first.named.values())
    if operation in ("div", "remainder", "fmod", "floor_divide"):
        turned = getattr(first.call and first.call.func, "__name__", "") in ("__rtruediv__", "__rdiv__")
        divided, divisor = (torch.as_tensor(x, device=bad.device) for x in (args[1::-1] if turned else args[:2]))
        zero = bad & (divisor == 0)
        return zero, "0/0" if bool((zero & (divided == 0)).any()) else "a number by 0"
    if operation in ("reciprocal", "rsqrt") and args and isinstance(args[0], Tensor):
        return bad & (args[0] == 0), "the input is 0"
    return torch.zeros_like(bad), ""


def infinite_logits(first: Candidate) -> Origin | None:
    """A loss that is infinite because an input is minus infinity: an excluded class counts after all."""
    negative = [operand for operand in first.event.operands if operand.impurity.negative]
    if first.terminal.kind != "inf" or not negative:
        return None
    operation, logits, target = first.event.operation, first.named.get("input"), first.named.get("target")
    if operation not in LOSSES or not isinstance(logits, Tensor) or not isinstance(target, Tensor):
        return first.origin(
            "unknown", f"{operation} turns minus infinity among its inputs into an infinite result", "ruled_out"
        )
    if target.shape == logits.shape[:1] and not target.is_floating_point():
        chosen = logits.gather(1, target.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        hit = (target >= 0) & (chosen == float("-inf"))
        if bool(hit.any()):
            what = f"{int(hit.sum())} labels name a class whose logit is minus infinity, so their loss is infinite"
            return first.origin("bad_inputs", what, "ruled_out_label", labels=listed(hit))
    return first.origin(
        "unknown",
        f"{operation} counts every class (label smoothing, or probabilities as targets), and the logits of some are "
        "minus infinity: the loss is infinite",
        "label_smoothing",
    )


def device_only(first: Candidate) -> Origin | None:
    """The CPU gives finite values for the same inputs in the same dtype: the device's kernel is the cause."""
    output = first.output
    if first.call is None or output is None or first.device == "cpu":
        return None
    plain = replay(first.call)
    if plain is None or plain.shape != output.shape:
        return None
    bad = ~torch.isfinite(output.detach().cpu())
    if not bool(torch.isfinite(plain[bad]).all()):
        return None
    return first.origin(
        "wrong_device",
        f"{first.event.operation} gives {int(bad.sum())} non-finite values on {first.device}, but finite "
        "ones on the CPU with the same inputs",
        "device_kernel",
        cpu_largest=largest(plain),
    )


def _largest_input(first: Candidate) -> float:
    return max((largest(tensor) for _, tensor in first.inputs), default=0.0)


def _overflowed(first: Candidate, output: Tensor, value: float, what: str = "the result") -> Origin:
    dtype = str(output.dtype).removeprefix("torch.")
    bound = torch.finfo(output.dtype).max
    source = _largest_input(first)
    beyond = f"{what} reaches {value:.4g}" if value > bound else f"{what} is too large"
    return first.origin(
        "overflow",
        f"{first.event.operation} overflows {dtype}: {beyond}, the largest {dtype} is {bound:.5g}; its largest "
        f"finite input is {source:.5g}",
        f"overflow_{dtype if dtype in ('float16', 'bfloat16') else 'float32'}",
        largest_input=source,
        largest_result=value,
        largest_of_dtype=bound,
        dtype=dtype,
    )


def unknown(first: Candidate) -> Origin:
    """The place is known, but not the reason."""
    event = first.event
    hint = _HINTS.get(event.operation)
    guess = f"; {hint}?" if hint else ""
    made = "NaN" if event.impurity.nan else "an infinity"
    where = "comes out of" if first.terminal.kind in ("nan", "inf") else "comes from an unobserved source into"
    return first.origin("unknown", f"{made} {where} {event.operation}, but no known cause fits{guess}", "unknown")
