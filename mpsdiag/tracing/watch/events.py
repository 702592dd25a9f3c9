"""What a detailed pass writes down: every operation whose output was not finite, and where its bad inputs came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mpsdiag.tracing.watch.operations import arguments, operation_name
from mpsdiag.tracing.watch.tensors import Impurity

SourceKind = Literal["event", "weight", "buffer", "batch", "unseen"]


@dataclass(frozen=True)
class Source:
    """Where a tensor came from: another event, a weight or buffer by name, the batch by key, or out of sight."""

    kind: SourceKind
    name: str = ""
    event: int = -1


@dataclass(frozen=True)
class Operand:
    """A non-finite tensor that went into an operation."""

    name: str
    impurity: Impurity
    source: Source


@dataclass(frozen=True)
class Call:
    """An operation with its arguments. `result` is as it came out, where it was seen to run."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any = None

    @property
    def operation(self) -> str:
        """Its public name."""
        return operation_name(self.func)

    @property
    def named(self) -> dict[str, Any]:
        """The arguments by name."""
        return arguments(self.operation, self.args, self.kwargs)


@dataclass(frozen=True)
class Event:
    """One operation whose output was not finite, or that raised.

    Attributes:
        index: Running number of the operation in the pass, finite ones counted too.
        operation: Its public name.
        module: Dotted path of the innermost module it ran in.
        layer: Decoder layer, None outside.
        impurity: What its output holds.
        operands: Its inputs that were not finite already.
        infinite_scalar: A plain infinite number was among its arguments.
        call: The call itself, if a value was born here.
        error: The exception, if it raised one.
    """

    index: int
    operation: str
    module: str
    layer: int | None
    impurity: Impurity
    operands: tuple[Operand, ...] = ()
    infinite_scalar: bool = False
    call: Call | None = None
    error: BaseException | None = None


@dataclass
class Pass:
    """One detailed pass over a batch.

    Attributes:
        events: The operations with non-finite outputs, in the order they ran.
        watched: Sources of the watched tensors (outputs of layers and of the model) that were not finite.
        spread: Per decoder layer, in how many sequences and at how many positions its output is not finite.
        operations: How many operations ran.
    """

    events: list[Event] = field(default_factory=list)
    watched: list[Source] = field(default_factory=list)
    spread: list[dict[str, Any]] = field(default_factory=list)
    operations: int = 0


TerminalKind = Literal["nan", "inf", "weight", "batch", "unseen", "error"]


@dataclass(frozen=True)
class Terminal:
    """The first end of a chain of non-finite values: born in `event`, or brought into it by `operand`."""

    kind: TerminalKind
    event: Event
    operand: Operand | None = None
