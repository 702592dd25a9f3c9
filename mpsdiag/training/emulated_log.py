"""What a Trainer logs under emulation: marked as emulated, and without timings, which would be the CPU model's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from transformers import TrainerCallback

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

_TIMINGS: Final = ("_runtime", "_per_second", "_time")


def mark_as_emulated(trainer: Trainer) -> None:
    """Let whoever prints or keeps the Trainer's log see it as emulated and without timings.

    Callbacks that are added afterwards see the log as it is.

    Args:
        trainer: Ready to train or evaluate.
    """
    for callback in trainer.callback_handler.callbacks:
        shown: Any = callback
        shown.on_log = _marking(callback.on_log)
    trainer.add_callback(_MarkHistory())


def emulated_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the log, marked, without what was timed."""
    kept = {name: value for name, value in row.items() if not name.endswith(_TIMINGS)}
    return {"emulated": True, **kept}


def _marking(on_log: Any) -> Any:
    def marked(*given: Any, logs: dict[str, Any] | None = None, **more: Any) -> Any:
        return on_log(*given, logs=None if logs is None else emulated_row(logs), **more)

    return marked


class _MarkHistory(TrainerCallback):
    """The last of the callbacks: the others have read what they need from the row."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        del args, control, kwargs
        if state.log_history:
            state.log_history[-1] = emulated_row(state.log_history[-1])
