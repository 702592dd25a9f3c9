"""The matrix: which values each axis takes, what is excluded or included, and how much is measured."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mpsdiag.benching.plan.spec_errors import Place, validated
from mpsdiag.benching.run.rounds import StopRule
from mpsdiag.emulation.releases import RELEASES
from mpsdiag.emulation.selection import MACOS, no_such_macos
from mpsdiag.errors import BadInput, nearest
from mpsdiag.scenario.scenario import Attention
from mpsdiag.words import DEFAULT_MODEL, LARGEST_SEED, MOST, DtypeName, PaddingSide, TaskChoice, TrainerVariant


def _zero(value: Any) -> Any:
    """TOML has no null: 0 means that lengths are not rounded up."""
    return None if value == "none" or (isinstance(value, int) and str(value) == "0") else value


def _release(value: str | None) -> str | None:
    """A release that can be emulated, such as `2.8`; `2.8.0` means the same."""
    if value is None:
        return None
    minor = ".".join(value.split(".")[:2])
    if minor not in RELEASES:
        raise ValueError(f"there is no emulation of torch '{value}'. {nearest(value, RELEASES)}")
    return minor


def _only(fits: Callable[[Any], object], problem: Callable[[Any], str]) -> AfterValidator:
    """Accept None and matching values; for anything else `problem` gives the message."""

    def check(value: Any) -> Any:
        if value is not None and not fits(value):
            raise ValueError(problem(value))
        return value

    return AfterValidator(check)


_NONE_WORD = BeforeValidator(lambda value: None if value == "none" else value)
"""TOML has no null: "none" says it."""
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d+)?")

Name = Annotated[
    str,
    _only(
        _FOLDER.fullmatch,
        lambda value: (
            f"{value!r} cannot name the output folder. Use letters, digits, '.', '_' and '-', a letter or digit first."
        ),
    ),
]
Environment = Annotated[
    str | None,
    _NONE_WORD,
    _only(
        _FOLDER.fullmatch,
        lambda value: f"{value!r} does not name an environment. `mpsdiag bisect` builds them and shows their names.",
    ),
]
Device = Annotated[
    str,
    _only(
        _DEVICE.fullmatch,
        lambda value: f"unknown device '{value}'. {nearest(value, ('auto', 'cpu', 'mps', 'cuda', 'xpu'))}",
    ),
]
Release = Annotated[str | None, _NONE_WORD, AfterValidator(_release)]
Macos = Annotated[int, Field(strict=True), _only(MACOS.__contains__, no_such_macos)]
Length = Annotated[int, Field(strict=True, ge=2, le=MOST)]
Count = Annotated[int, Field(strict=True, ge=1, le=MOST)]
Multiple = Annotated[Count | None, BeforeValidator(_zero)]
Whole = Annotated[int, Field(strict=True, ge=0, le=MOST)]
Rounds = Annotated[int, Field(strict=True, ge=0, le=1000)]
Threads = Annotated[int, Field(strict=True, ge=1, le=1024)]
Seed = Annotated[int, Field(strict=True, ge=0, le=LARGEST_SEED)]

Item = TypeVar("Item")
_LISTED = BeforeValidator(lambda value: value if isinstance(value, list | tuple) or value is None else [value])
"""A single value stands for a list of one."""
Values = Annotated[list[Item], _LISTED, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Axes(_Strict):
    """What varies. The fields are in the order of the loops, the outermost first."""

    model: Values[str] = [DEFAULT_MODEL]
    task: Values[TaskChoice] = ["auto"]
    dtype: Values[DtypeName] = ["float32"]
    device: Values[Device] = ["auto"]
    emulate: Values[Release] = [None]
    emulate_macos: Values[Macos] = [15]
    environment: Values[Environment] = [None]
    max_length: Values[Length] = [512]
    batch_size: Values[Count] = [4]
    pad_to_multiple_of: Values[Multiple] = [None]
    seed: Values[Seed] = [0]
    padding_side: Values[PaddingSide] = ["left", "right"]
    trainer: Values[TrainerVariant] = ["standard", "mps_safe", "cpu_loss"]
    attn_implementation: Values[Attention] = ["sdpa", "eager", "safe_sdpa"]


class Rule(Axes):
    """Values of some axes. As an exclude rule it leaves out cells that match on every axis named.

    An include rule is a matrix of its own: the axes it names take its values, the others their first value.
    """

    @model_validator(mode="after")
    def _names_something(self) -> Rule:
        if not self.named():
            raise ValueError("this rule names no axis, so it has no effect")
        return self

    def named(self) -> dict[str, list[Any]]:
        """The axes that the rule names, with their values."""
        return {name: getattr(self, name) for name in AXES if name in self.model_fields_set}


class MatrixSpec(_Strict):
    """A whole matrix file."""

    name: Name = "default"
    """Names the output folder."""
    baseline: Attention = "sdpa"
    """The attention mode to which ratios are relative."""
    dataset: str = "synthetic"
    eval_dataset: str | None = None
    max_steps: Whole = 3
    eval_max_batches: Count = 4
    rounds: Rounds = 3
    """Timing rounds for every cell; 0: verdicts only."""
    max_rounds: Rounds = 5
    """Most rounds, for cells whose ratio is not yet known to `precision`."""
    precision: Annotated[float, Field(strict=True, gt=0, lt=1, allow_inf_nan=False)] = 0.03
    """Width of a ratio's 95 % interval, relative to the ratio, that is narrow enough."""
    warmup: Whole = 2
    repeats: Count = 5
    """Timed steps of each kind in a round."""
    threads: Threads | None = None
    """CPU threads of torch in a cell; by default one for the built-in models and torch's default for others."""
    time_limit: Annotated[float, Field(strict=True, gt=0, le=MOST, allow_inf_nan=False)] = 300.0
    """Seconds that one round of one cell may take."""
    max_cells: Count = 1000
    axes: Axes = Axes()
    include: list[Rule] = []
    exclude: list[Rule] = []

    @model_validator(mode="after")
    def _rounds_fit(self) -> MatrixSpec:
        if {"rounds", "max_rounds"} <= self.model_fields_set and self.rounds > self.max_rounds:
            raise ValueError(f"max_rounds ({self.max_rounds}) is smaller than rounds ({self.rounds}).")
        return self

    @property
    def environments(self) -> list[str]:
        """The environments of other releases that it names."""
        named = (name for axes in (self.axes, *self.include) for name in axes.environment)
        return list(dict.fromkeys(name for name in named if name is not None))

    @property
    def rule(self) -> StopRule:
        """How many timing rounds; if only one of the two numbers was given, the other is adjusted to it."""
        if "rounds" in self.model_fields_set:
            return StopRule(self.rounds, max(self.rounds, self.max_rounds), self.precision)
        return StopRule(min(self.rounds, self.max_rounds), self.max_rounds, self.precision)


AXES: Final[tuple[str, ...]] = tuple(Axes.model_fields)


def changed(spec: MatrixSpec, values: dict[str, Any]) -> MatrixSpec:
    """The same matrix with the values that options of the command line give.

    Raises BadInput for an impossible value, naming the option and the nearest word.
    """
    given = {name: value for name, value in values.items() if value is not None and value != []}
    document = spec.model_dump(exclude_unset=True)
    axes = document.setdefault("axes", {})
    for name, value in given.items():
        if name in AXES:
            axes[name] = value
        elif name in MatrixSpec.model_fields:
            document[name] = value
        else:
            raise BadInput(f"A matrix has no key '{name}'. {nearest(name, [*AXES, *MatrixSpec.model_fields])}")

    def option(place: Place) -> str:
        """The option for a key; if the numbers of rounds contradict each other, those that were given."""
        names = [part for part in place if isinstance(part, str)][-1:]
        names = names or [name for name in ("rounds", "max_rounds") if name in given]
        return " and ".join(f"--{name.replace('_', '-')}" for name in names)

    return validated(MatrixSpec, document, option)
