"""A script that shows one fault with torch alone: written from a reduced call, ready for an upstream issue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.overrides import resolve_name

from mpsdiag.environment import Environment, facts
from mpsdiag.tracing.origin import Origin
from mpsdiag.tracing.repro.reduce import Made
from mpsdiag.tracing.repro.still_fails import ROUNDINGS, IsolatedCall, Placeholder
from mpsdiag.tracing.watch.operations import SDPA

# From the definition: under emulation, and on a device, no kernel judges another kernel.
REFERENCE = """
def reference(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    q, k, v = query.double(), key.double(), value.double()
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    visible = torch.ones(scores.shape, dtype=torch.bool)
    if is_causal:
        visible = visible.tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        visible = visible & attn_mask
    elif attn_mask is not None:
        scores = scores + attn_mask.double()
    return torch.nan_to_num(scores.masked_fill(~visible, float("-inf")).softmax(-1)) @ v
"""

MARK = '"""Written by mpsdiag trace'


def function_name(lone: IsolatedCall) -> str | None:
    """What the script calls the operation, such as `torch.nn.functional.linear`; None if torch has no name for it."""
    func: Any = lone.func
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):  # noqa: SLF001 - torch's only name for it
        return f"torch.ops.{func}"
    name = resolve_name(func)
    return name if isinstance(name, str) and name.startswith("torch.") else None


def render(lone: IsolatedCall, made: Sequence[Made], origin: Origin, environment: Environment) -> str:
    """The text of the script. It exits with 1 where it shows the fault, and with 0 where it does not.

    Args:
        lone: The reduced call.
        made: Its tensors, with the expressions that make them.
        origin: What it shows.
        environment: Where it was found.
    """
    names = [_identifier(name, index) for index, name in enumerate(lone.names)]
    where = lone.emulation.describe() + " (on the CPU)" if lone.emulation else str(lone.device)
    default = f'"{lone.device.type}"'
    if lone.emulation is not None:
        default = '"mps" if torch.backends.mps.is_available() else "cpu"'
    lines = [
        f"{MARK}: {_prose(origin.summary)}.",
        "",
        f"Needs torch only: python {{this file}} [device]. Found on {where}.",
    ]
    if lone.emulation is not None:
        lines.append("Found under emulation, not measured: run it on a Mac before you report it.")
    lines += ["Exit code 1: it shows; 0: it does not.", "", "Environment:"]
    lines += [f"  {name}: {_prose(text)}" for name, text in facts(environment)]
    lines += ['"""', "", "import sys", "", "import torch", ""]
    if any("inf" in item.expression or "nan" in item.expression for item in made):
        lines.append('inf, nan = float("inf"), float("nan")')
    lines.append(f"device = sys.argv[1] if len(sys.argv) > 1 else ({default})")
    lines += [f"{name} = {item.expression}" for name, item in zip(names, made, strict=True)]
    lines += ["", "", "def run(device, dtype=None):", *_body(lone, names), "", ""]
    if lone.operation == SDPA:
        lines += [*REFERENCE.strip().splitlines(), "", ""]
    lines += _judgement(lone, names)
    return "\n".join(lines) + "\n"


def _body(lone: IsolatedCall, names: Sequence[str]) -> list[str]:
    mode = "enable_grad" if lone.grad else "no_grad"
    moved = [
        f"{name}.detach().to(device).to(dtype if dtype and {name}.is_floating_point() else {name}.dtype)"
        for name in names
    ]
    lines = [f"    {name}_ = {expression}" for name, expression in zip(names, moved, strict=True)]
    lines += [f"    {name}_.requires_grad_()" for name, wants in zip(names, lone.wants, strict=True) if wants]
    moved_names = [f"{name}_" for name in names]
    return [
        *lines,
        f"    with torch.{mode}():",
        f"        return {function_name(lone)}({_arguments(lone, moved_names)})",
    ]


def _judgement(lone: IsolatedCall, names: Sequence[str]) -> list[str]:
    shown = [
        "result = run(device).detach().cpu()",
        f"exact = {_exact(lone, names)}",
        'print("torch", torch.__version__, "on", device)',
        'print("result:", result)',
        'print("float64 on the CPU:", exact)',
    ]
    if lone.fault == "non-finite":
        return [
            *shown,
            "bad = ~torch.isfinite(result)",
            'print(f"{int(bad.sum())} of {result.numel()} values are not finite")',
            "sys.exit(1 if bad.any() else 0)",
        ]
    return [
        *shown,
        "difference = (result.double() - exact).abs().max()",
        "rounding = torch.finfo(result.dtype).eps * exact.abs().max()",
        'print(f"largest difference: {difference:.3g}; one rounding is {rounding:.3g}")',
        f"sys.exit(1 if difference > {ROUNDINGS} * rounding else 0)",
    ]


def _exact(lone: IsolatedCall, names: Sequence[str]) -> str:
    if lone.operation != SDPA:
        return 'run("cpu", torch.float64).detach()'
    return f"reference({_arguments(lone, names)})"


def _arguments(lone: IsolatedCall, names: Sequence[str]) -> str:
    """What stands between the parentheses of a call, with these names for the tensors."""
    named = [f"{key}={_argument(value, names)}" for key, value in lone.kwargs.items()]
    return ", ".join([*(_argument(value, names) for value in lone.args), *named])


def _argument(value: Any, names: Sequence[str]) -> str:
    if isinstance(value, Placeholder):
        return names[value.index]
    if isinstance(value, torch.dtype):
        return f"dtype or {value}" if value.is_floating_point else str(value)
    if isinstance(value, torch.device):
        return "device"
    if isinstance(value, tuple):
        inside = ", ".join(_argument(item, names) for item in value)
        return f"({inside},)" if value else "()"
    if isinstance(value, list):
        return f"[{', '.join(_argument(item, names) for item in value)}]"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def _identifier(name: str, index: int) -> str:
    word = "".join(character if character.isalnum() else "_" for character in name)
    return word if word.isidentifier() and not word[0].isdigit() else f"argument_{index}"


def _prose(text: str) -> str:
    """Text that cannot end the docstring it stands in."""
    return text.replace("\\", "/").replace('"""', "'''")
