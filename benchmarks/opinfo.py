"""torch's own samples of scaled_dot_product_attention, stock against `install("safe_sdpa")`: is all the same?

    python benchmarks/opinfo.py

The samples are those of torch.testing's OpInfo, and each again with masks that have fully masked rows. Forward and
backward are compared bit for bit; gradcheck, gradgradcheck, forward-mode AD, vmap and fake tensors by their outcome,
which may be an error: then the same one. Needs the package expecttest. Exit code 1 if anything differs.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import SampleInput

import mpsdiag

NAMES = ("nn.functional.scaled_dot_product_attention", "nn.functional.multi_head_attention_forward")
ATTENTION = NAMES[0]


def samples(name: str, dtype: torch.dtype) -> Iterator[SampleInput]:
    """The samples of an operator; those of attention also with a boolean and an additive mask each."""
    operator = next(op for op in op_db if op.name == name)
    for sample in operator.sample_inputs("cpu", dtype, requires_grad=True):
        yield sample
        if name == ATTENTION and not sample.kwargs.get("is_causal") and "attn_mask" not in sample.kwargs:
            keep = torch.ones(sample.input.shape[-2], sample.args[0].shape[-2], dtype=torch.bool).tril(-1)
            for mask in (keep, torch.where(keep, 0.5, -torch.inf).to(dtype).requires_grad_()):
                yield SampleInput(sample.input, args=sample.args, kwargs=sample.kwargs | {"attn_mask": mask})


def tensors(sample: SampleInput) -> list[torch.Tensor]:
    """The inputs of a sample that get a gradient."""
    values = (sample.input, *sample.args, *sample.kwargs.values())
    return [x for x in values if isinstance(x, torch.Tensor) and x.requires_grad]


def call(sample: SampleInput, inputs: tuple[torch.Tensor, ...] | None = None) -> torch.Tensor:
    """Run the public function on a sample, with other tensors in the place of those that get a gradient."""
    new = iter(tensors(sample) if inputs is None else inputs)

    def placed(value: Any) -> Any:
        return next(new) if isinstance(value, torch.Tensor) and value.requires_grad else value

    first, *rest = [placed(value) for value in (sample.input, *sample.args)]
    options = {name: placed(value) for name, value in sample.kwargs.items()}
    torch.manual_seed(0)
    # By its name at this moment: what is installed is met.
    name = "scaled_dot_product_attention" if len(rest) == 2 else "multi_head_attention_forward"
    result = getattr(torch.nn.functional, name)(first, *rest, **options)
    return result if isinstance(result, torch.Tensor) else result[0]


def forward(sample: SampleInput) -> list[torch.Tensor]:
    """The output without gradients."""
    with torch.no_grad():
        return [call(sample)]


def backward(sample: SampleInput) -> list[torch.Tensor]:
    """The output and the gradients."""
    output = call(sample)
    return [output, *torch.autograd.grad(output.square().sum(), tensors(sample), allow_unused=True)]


def numeric(check: Callable[..., bool], **options: Any) -> Callable[[SampleInput], list[Any]]:
    """A numeric check of derivatives on the same function and inputs."""

    def run(sample: SampleInput) -> list[Any]:
        inputs = tuple(x.detach().clone().requires_grad_() for x in tensors(sample))
        return [check(lambda *new: call(sample, new), inputs, fast_mode=True, **options)]

    return run


def mapped(sample: SampleInput) -> list[torch.Tensor]:
    """The function under vmap, over two batches."""
    inputs = tuple(torch.stack([x.detach(), 2 * x.detach()]) for x in tensors(sample))
    return [torch.func.vmap(lambda *new: call(sample, new), randomness="same")(*inputs)]


def fake(sample: SampleInput) -> list[Any]:
    """The shape, strides and dtype that fake tensors give."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        output = call(sample, tuple(mode.from_tensor(x) for x in tensors(sample)))
    return [output.shape, output.stride(), output.dtype, output.requires_grad]


CHECKS: dict[str, tuple[Callable[[SampleInput], list[Any]], tuple[torch.dtype, ...]]] = {
    "forward": (forward, (torch.float32, torch.float64, torch.bfloat16, torch.float16)),
    "backward": (backward, (torch.float32, torch.float64, torch.bfloat16)),
    "gradcheck": (numeric(gradcheck), (torch.float64,)),
    "gradgradcheck": (numeric(gradgradcheck), (torch.float64,)),
    "forward AD": (numeric(gradcheck, check_forward_ad=True, check_backward_ad=False), (torch.float64,)),
    "vmap": (mapped, (torch.float32,)),
    "fake tensors": (fake, (torch.float32,)),
}


def outcome(check: Callable[[SampleInput], list[Any]], sample: SampleInput) -> tuple[str, list[Any]]:
    """What comes of a check: values, or the first line of the error."""
    try:
        return "ran", check(sample)
    except Exception as problem:  # noqa: BLE001 - whatever stock raises is to be raised with the mode too
        return f"{type(problem).__name__}: {str(problem).splitlines()[0][:120]}", []


def same(ours: Any, stock: Any) -> bool:
    """Bit-equal, with the same strides."""
    if not isinstance(ours, torch.Tensor):
        return bool(ours == stock)
    equal = torch.equal(ours.nan_to_num(), stock.nan_to_num()) and torch.equal(ours.isnan(), stock.isnan())
    return equal and (ours.stride(), ours.dtype) == (stock.stride(), stock.dtype)


def main() -> int:
    """Run every check on every sample, both ways."""
    warnings.simplefilter("ignore")
    different = 0
    print("| operator | check | samples | ran | refused alike | different |\n|---|---|---|---|---|---|")
    for name in NAMES:
        for title, (check, dtypes) in CHECKS.items():
            found: Counter[str] = Counter()
            for sample in (sample for dtype in dtypes for sample in samples(name, dtype)):
                stock = outcome(check, sample)
                with mpsdiag.install("safe_sdpa"):
                    ours = outcome(check, sample)
                if stock[0] != ours[0] or not all(map(same, ours[1], stock[1])):
                    found["different"] += 1
                    print(f"{title}: {sample}\n  stock: {stock[0]}\n  ours:  {ours[0]}", file=sys.stderr)
                else:
                    found["ran" if stock[0] == "ran" else "refused"] += 1
            counts = [found["ran"], found["refused"], found["different"]]
            print(
                f"| {name.removeprefix('nn.functional.')} | {title} | {sum(counts)} | "
                + " | ".join(map(str, counts))
                + " |"
            )
            different += found["different"]
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
