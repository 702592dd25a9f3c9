"""What this machine is: versions, chip, system, memory and the variables that steer torch and transformers.

Redacted by construction: home folder, user name, host name and tokens never get into an `Environment`.
"""

import contextlib
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mpsdiag.errors import BadInput
from mpsdiag.escape import redact, rules
from mpsdiag.installs import version

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "numpy", "pandas")
TORCH_FLOOR = "2.5"
VARIABLE_PREFIXES = ("PYTORCH_", "HF_", "TRANSFORMERS_", "ACCELERATE_", "MPSDIAG_")


class Environment(BaseModel):
    """One machine and its libraries; memory in bytes. None means that a value is not known here."""

    model_config = ConfigDict(extra="forbid")

    mpsdiag: str
    python: str
    system: str
    """Name and version of the operating system, such as `macOS 15.5`."""
    system_build: str | None = None
    machine: str
    chip: str | None = None
    cpu_cores: int | None = None
    gpu_cores: int | None = None
    memory: int | None = None
    versions: dict[str, str | None] = Field(default_factory=dict)
    mps_built: bool | None = None
    mps_available: bool | None = None
    mps_usable: bool | None = None
    mps_note: str | None = None
    cuda: str | None = None
    default_attention: str | None = None
    variables: dict[str, str] = Field(default_factory=dict)
    broken: dict[str, str] | None = None
    """Libraries that cannot be imported and queries that fail, with reasons; None if there are none."""


def gather(
    accelerators: Mapping[str, bool | str | None] | None = None, default_attention: str | None = None
) -> Environment:
    """Describe this machine, without importing torch."""
    import psutil

    known = dict(accelerators or {})
    return Environment(
        mpsdiag=version("mpsdiag") or "not installed",
        python=platform.python_version(),
        system=f"macOS {platform.mac_ver()[0]}" if _is_mac() else f"{platform.system()} {platform.release()}",
        system_build=_ask("sw_vers", "-buildVersion") if _is_mac() else platform.release(),
        machine=platform.machine(),
        chip=_chip(),
        cpu_cores=psutil.cpu_count(logical=True),
        gpu_cores=_gpu_cores(),
        memory=psutil.virtual_memory().total,
        versions={name: version(name) for name in PACKAGES},
        default_attention=default_attention,
        variables=relevant_variables(os.environ, redact),
        **known,  # type: ignore[arg-type]  # pydantic checks each value
    )


def versions(names: Iterable[str] = ("torch", "transformers")) -> dict[str, str]:
    """Installed versions by name, `missing` if not installed; by default those that a cell's key depends on."""
    return {name: version(name) or "missing" for name in names}


def macos() -> int | None:
    """Major version of this macOS; None on other systems."""
    return int(platform.mac_ver()[0].partition(".")[0]) if _is_mac() else None


def relevant_variables(variables: Mapping[str, str], clean: Callable[[str], str]) -> dict[str, str]:
    """Pick the variables that control torch and transformers; if they may not be shown, the value is `<set>`."""
    shown, _ = rules()
    return {
        name: clean(text) if name in shown else "<set>"
        for name, text in sorted(variables.items())
        if name.startswith(VARIABLE_PREFIXES)
    }


def to_markdown(environment: Environment, escaped: Callable[[str], str]) -> str:
    """The block to paste into an issue: one `- key: value` on each line, each value made harmless."""
    lines = ["<details><summary>Environment (mpsdiag env)</summary>", ""]
    lines += [f"- {name}: {escaped(text)}" for name, text in facts(environment)]
    return "\n".join([*lines, "", "</details>", ""])


def facts(environment: Environment) -> list[tuple[str, str]]:
    """List what is known as (name, text) pairs, in reading order."""
    pairs: list[tuple[str, object]] = [
        ("mpsdiag", environment.mpsdiag),
        ("Python", environment.python),
        *environment.versions.items(),
        ("System", _join(environment.system, environment.system_build)),
        ("Machine", environment.machine),
        ("Chip", environment.chip),
        ("CPU cores", environment.cpu_cores),
        ("GPU cores", environment.gpu_cores),
        ("Memory", None if environment.memory is None else f"{environment.memory / 2**30:.1f} GiB"),
        ("MPS built", _YES_NO[environment.mps_built]),
        ("MPS available", _YES_NO[environment.mps_available]),
        ("MPS usable", _join(_YES_NO[environment.mps_usable], environment.mps_note)),
        ("CUDA", environment.cuda),
        ("Default attention", environment.default_attention),
        *environment.variables.items(),
        *((f"{name} fails", what) for name, what in (environment.broken or {}).items()),
    ]
    return [(name, str(value)) for name, value in pairs if value is not None]


def _is_mac() -> bool:
    return platform.system() == "Darwin"


_YES_NO = {True: "yes", False: "no", None: None}


def _join(text: str | None, note: str | None) -> str | None:
    return text if text is None or not note else f"{text} ({note})"


def _chip() -> str | None:
    if _is_mac():
        return _ask("sysctl", "-n", "machdep.cpu.brand_string")
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        if found := re.search(r"^model name.*?:(.*)$", text, re.MULTILINE):
            return found[1].strip()
    return platform.processor() or None


def _gpu_cores() -> int | None:
    if not _is_mac():
        return None
    found = re.search(r'"gpu-core-count"\s*=\s*(\d+)', _ask("ioreg", "-rc", "AGXAccelerator", "-d1") or "")
    return int(found.group(1)) if found else None


def _ask(*command: str) -> str | None:
    """The output of a system program, or None if it is missing or fails."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def default_attention() -> str:
    """The attention, such as `sdpa`, that transformers chooses for a model whose config names none."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    model: Any = AutoModelForCausalLM
    return str(model.from_config(config).config._attn_implementation)


def require_working_pair() -> None:
    """Refuse a torch that the installed transformers does not work with, before either is imported.

    transformers names the lowest torch it accepts in its metadata, and disables torch below it.
    """
    try:
        torch, transformers = metadata.version("torch"), metadata.version("transformers")
    except metadata.PackageNotFoundError:
        return  # The next import reports which one is missing.
    floor = max(_declared_floor(), TORCH_FLOOR, key=version_numbers)
    if version_numbers(torch) < version_numbers(floor):
        raise BadInput(
            f"transformers {transformers} needs torch {floor} or newer, and torch {torch} is installed. "
            f'pip install -U "torch>={floor}"'
        )


def _declared_floor() -> str:
    """The lowest torch in the metadata of transformers, "0" if it names none."""
    found = (re.match(r"torch\s*>=\s*([\d.]+)", line) for line in metadata.requires("transformers") or ())
    return max((match[1] for match in found if match), key=version_numbers, default="0")


def version_numbers(text: str) -> tuple[int, ...]:
    """The numbers of a version without its local part: "2.13.0+cpu" is (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])
