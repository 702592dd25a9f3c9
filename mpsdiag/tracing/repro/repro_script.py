"""`--repro`: reduce the call that gave the fault, write it as a script that needs only torch, run it, and keep it."""

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
    "bad_weights": "the weights are bad before anything runs",
    "bad_inputs": "the inputs are bad before anything runs",
    "divergence": "the learning rate is the cause, not an operation",
    "hidden_by_filter": "the filter hides it, and no operation causes it",
}

MARK = '"""Written by mpsdiag trace'


def check_target(path: Path) -> None:
    """Refuse to overwrite a file that mpsdiag has not written."""
    if path.suffix != ".py":
        raise BadInput(f"--repro writes a Python script, but {path} does not end in .py.")
    if path.is_dir():
        raise BadInput(f"{path} is a folder. Give a file name for --repro.")
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(MARK):
        raise BadInput(f"{path} exists, but mpsdiag did not write it. Choose another name for --repro.")


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
        return _none("there is nothing to show: everything is finite")
    if origin.cause in _NOTHING:
        return _none(_NOTHING[origin.cause])
    if call is None:
        return _none("the fault does not come from a single call that could be kept")
    fault: Fault = "wrong" if origin.cause == "wrong_device" and "logits" in origin.evidence else "non-finite"
    lone, tensors = alone(call, grad=grad, emulation=emulation, fault=fault)
    if function_name(lone) is None:
        return _none(f"torch has no public name for {origin.operation}")
    still = partial(shows, lone)
    if not still(tensors):
        return _none(f"{origin.operation} alone, with the same inputs, does not show the fault")
    made = plainest(smallest(tensors, still), still)
    if made is None:
        return _none("the inputs cannot be made small enough to write out")
    text = render(lone, made, origin, environment)
    ran = _run(text, emulation)
    if ran is None:
        return _none("the script that was written does not show the fault when run")
    write_atomically(path, text)
    how = "" if emulation is None else f" under {emulation.describe()}"
    return True, f"Wrote {path}: run{how}, it shows the fault ({ran})."


def _none(why: str) -> tuple[bool, str]:
    return False, f"No script: {why}."


def _run(text: str, emulation: Emulation | None) -> str | None:
    """Run the script in a separate Python; its last line if it shows the fault."""
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
    """The name of the operation in the script, such as `torch.nn.functional.linear`; None if torch has no name."""
    func: Any = lone.call.func
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):  # noqa: SLF001 - torch's only name for it
        return f"torch.ops.{func}"
    # torch keeps the names of its first look-up: if a fix was installed by then, it has none for the stock function.
    stock = func is torch._C._nn.scaled_dot_product_attention  # noqa: SLF001 - where no fix replaces it
    name = "torch.nn.functional.scaled_dot_product_attention" if stock else resolve_name(func)
    return name if isinstance(name, str) and name.startswith("torch.") else None


def render(lone: IsolatedCall, made: Sequence[Made], origin: Origin, environment: Environment) -> str:
    """The text of the script. It exits with 1 if it shows the fault, and with 0 if it does not."""
    import jinja2

    names = [_identifier(name, index) for index, name in enumerate(lone.names)]
    emulated = '"mps" if torch.backends.mps.is_available() else "cpu"'
    template = jinja2.Template(  # Python, in which nothing is escaped; `_prose` keeps to its docstring.
        Path(__file__).with_name("script.py.j2").read_text(encoding="utf-8"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    text: str = template.render(
        lone=lone,
        mark=MARK,
        summary=_prose(origin.summary),
        where=lone.emulation.describe() + " (on the CPU)" if lone.emulation else lone.device,
        environment=[f"{name}: {_prose(text)}" for name, text in facts(environment)],
        named_numbers=any("inf" in item.expression or "nan" in item.expression for item in made),
        default=emulated if lone.emulation else f'"{lone.device.type}"',
        tensors=[(name, item.expression) for name, item in zip(names, made, strict=True)],
        function=function_name(lone),
        moved=_arguments(lone, [f"{name}_" for name in names]),
        given=_arguments(lone, names),
        attention=lone.call.operation == SDPA,
        roundings=ROUNDINGS,
        zip=zip,
    )
    return text


def _arguments(lone: IsolatedCall, names: Sequence[str]) -> str:
    """The text between the parentheses of a call, with these names for the tensors."""
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
    """Text that cannot end the docstring that contains it."""
    return text.replace("\\", "/").replace('"""', "'''")
