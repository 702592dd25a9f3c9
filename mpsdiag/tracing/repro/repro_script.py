"""`--repro`: reduce the call that gave the fault, write it as a script with torch alone, run it, and keep it."""

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.overrides import resolve_name

from mpsdiag.emulation.selection import Emulation
from mpsdiag.environment import Environment, facts
from mpsdiag.errors import BadInput
from mpsdiag.fixes.startup import RunRequest
from mpsdiag.sdpa.watch import SDPA
from mpsdiag.serialization import write_atomically
from mpsdiag.tracing.origin import Origin
from mpsdiag.tracing.repro.reduce import (
    ROUNDINGS,
    Fault,
    IsolatedCall,
    Made,
    Placeholder,
    alone,
    plainest,
    shows,
    smallest,
)
from mpsdiag.tracing.watch.calls import TorchCall

SECONDS = 120
_NOTHING = {
    "bad_weights": "the weights are broken before anything runs",
    "bad_inputs": "the inputs are broken before anything runs",
    "divergence": "the learning rate is at fault, no operation",
    "hidden_by_filter": "the filter hides it, no operation makes it",
}

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


def check_target(path: Path) -> None:
    """Refuse to overwrite what mpsdiag has not written."""
    if path.suffix != ".py":
        raise BadInput(f"--repro writes a Python script, and {path} does not end in .py.")
    if path.is_dir():
        raise BadInput(f"{path} is a folder. Give a file name for --repro.")
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(MARK):
        raise BadInput(f"{path} exists, and mpsdiag did not write it. Choose another name for --repro.")


def write_repro(
    path: Path,
    origin: Origin | None,
    call: TorchCall | None,
    environment: Environment,
    *,
    grad: bool,
    emulation: Emulation | None,
) -> tuple[bool, str]:
    """Write the script, if the operation alone shows the fault: whether it was written, and what it showed."""
    if origin is None:
        return _none("there is nothing to show, everything is finite")
    if origin.cause in _NOTHING:
        return _none(_NOTHING[origin.cause])
    if call is None:
        return _none("it does not come from a single call that could be kept")
    fault: Fault = "wrong" if origin.cause == "wrong_device" and "logits" in origin.evidence else "non-finite"
    lone, tensors = alone(call, grad=grad, emulation=emulation, fault=fault)
    if function_name(lone) is None:
        return _none(f"torch has no public name for {origin.operation}")
    still = partial(shows, lone)
    if not still(tensors):
        return _none(f"{origin.operation} by itself, with the same inputs, does not show it")
    made = plainest(smallest(tensors, still), still)
    if made is None:
        return _none("the inputs cannot be made small enough to be written out")
    text = render(lone, made, origin, environment)
    ran = _run(text, emulation)
    if ran is None:
        return _none("the one that was written does not show it when it is run")
    write_atomically(path, text)
    how = "" if emulation is None else f" under {emulation.describe()}"
    return True, f"Wrote {path}: run{how}, it shows the fault ({ran})."


def _none(why: str) -> tuple[bool, str]:
    return False, f"No script: {why}."


def _run(text: str, emulation: Emulation | None) -> str | None:
    """Run the script in a Python of its own; its last line if it shows the fault."""
    environ = dict(os.environ)
    if emulation is not None:
        environ = RunRequest(("sdpa",), emulation.release, emulation.macos).environment(environ)
    with tempfile.TemporaryDirectory(prefix="mpsdiag-") as folder:
        script = Path(folder) / "repro.py"
        script.write_text(text, encoding="utf-8")
        try:
            child = subprocess.run(
                [sys.executable, str(script)],
                env=environ,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
                cwd=folder,
            )
        except subprocess.TimeoutExpired:
            return None
    lines = child.stdout.strip().splitlines()
    return lines[-1] if child.returncode == 1 and lines and "Traceback" not in child.stderr else None


def function_name(lone: IsolatedCall) -> str | None:
    """What the script calls the operation, such as `torch.nn.functional.linear`; None if torch has no name for it."""
    func: Any = lone.call.func
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):  # noqa: SLF001 - torch's only name for it
        return f"torch.ops.{func}"
    # torch keeps the names of its first look-up: if a fix was installed by then, it has none for the stock function.
    stock = func is torch._C._nn.scaled_dot_product_attention  # noqa: SLF001 - where no fix replaces it
    name = "torch.nn.functional.scaled_dot_product_attention" if stock else resolve_name(func)
    return name if isinstance(name, str) and name.startswith("torch.") else None


def render(lone: IsolatedCall, made: Sequence[Made], origin: Origin, environment: Environment) -> str:
    """The text of the script. It exits with 1 where it shows the fault, and with 0 where it does not."""
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
    if lone.call.operation == SDPA:
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
        f"exact = reference({_arguments(lone, names)})"
        if lone.call.operation == SDPA
        else 'exact = run("cpu", torch.float64).detach()',
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


def _arguments(lone: IsolatedCall, names: Sequence[str]) -> str:
    """What stands between the parentheses of a call, with these names for the tensors."""
    named = [f"{key}={_argument(value, names)}" for key, value in lone.call.kwargs.items()]
    return ", ".join([*(_argument(value, names) for value in lone.call.args), *named])


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
