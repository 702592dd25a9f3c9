"""The test suite with the releases that people use: `nox` for all, `nox -s torch-2.7` for one, `nox -l` for the list.

Each environment is built by uv. On Linux set UV_TORCH_BACKEND=cpu: the default wheels of torch bring gigabytes of CUDA.
The results, with dates, are in docs/compatibility.md.
"""

from __future__ import annotations

from typing import NamedTuple

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "uv"


class Environment(NamedTuple):
    """A Python and the packages pinned in it; `options` go to `uv pip install`."""

    python: str
    pins: tuple[str, ...]
    options: tuple[str, ...] = ()


ENVIRONMENTS = {
    "lowest": Environment("3.10", (), ("--resolution", "lowest-direct")),
    "torch-2.5": Environment("3.10", ("torch==2.5.1", "transformers==4.53.3")),
    "torch-2.7": Environment("3.11", ("torch==2.7.1", "transformers==4.56.2")),
    "torch-2.8": Environment("3.12", ("torch==2.8.0", "transformers==4.57.6")),
    "pinned": Environment("3.11", (), ("--constraint", "constraints.txt")),
    "newest": Environment("3.14", ("torch==2.15.0", "transformers==5.24.0")),
}
SUITE = ("pytest", "-n", "auto", "-m", "not browser")


def add(name: str, environment: Environment) -> None:
    """Register the session of one environment."""

    @nox.session(name=name, python=environment.python, venv_backend="uv")
    def suite(session: nox.Session) -> None:
        session.install(*environment.options, *environment.pins, "-e", ".", "--group", "test")
        session.run(*SUITE, *session.posargs, env={"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})


for each in ENVIRONMENTS.items():
    add(*each)


@nox.session(name="real-nan", python="3.10", venv_backend="uv")
def real_nan(session: nox.Session) -> None:
    """On torch 2.4 even the CPU gives NaN for fully masked rows: the defect and the fix, measured, not emulated."""
    session.install("torch==2.4.1", "numpy<2", "typer>=0.18", "rich", "pydantic", "packaging", "psutil", "tomli")
    session.install("--no-deps", "-e", ".")  # Its own floor is torch 2.5.
    session.run("python", "tests/releases/real_nan.py")
