"""`BadBatchRecorder`: saves the first bad batch of a training run, with the weights at that time, for a later trace."""

import logging
import math
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerState, TrainingArguments

from mpsdiag.inputs.modules import embeddings_of, logits_of, loss_of
from mpsdiag.tracing.cases.recorded_case import About, check_free, write_case
from mpsdiag.trainers.forward_watch import watch_forward

logger = logging.getLogger(__name__)

KEPT_LOSSES = 50


class BadBatchRecorder(TrainerCallback):
    """Saves the first batch with non-finite loss, logits or gradients in a folder, for `mpsdiag trace FOLDER`.

    Give it to any Trainer: `callbacks=[BadBatchRecorder("bad-batch")]`. It waits for the device once in each forward,
    and once in each step for the gradients. After the first record it does nothing.

    Attributes:
        recorded: The folder of the batch; None until one is recorded.

    Args:
        folder: Must not exist, or be empty.
        save_weights: Also save the weights at that time. Without them, replaying needs `--model`.

    Raises:
        BadInput: The folder is in use.
    """

    def __init__(self, folder: str | Path, *, save_weights: bool = True) -> None:
        self._folder = Path(folder)
        check_free(self._folder)
        self.recorded: Path | None = None
        self._save_weights = save_weights
        self._arguments: TrainingArguments | None = None
        self._state: TrainerState | None = None
        self._last: tuple[dict[str, Any], float | None] | None = None
        self._losses: list[float] = []
        self._watched: weakref.ref[nn.Module] | None = None
        self._handle: RemovableHandle | None = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, *_: Any, model: Any = None, **__: Any) -> None:
        """Start watching the model."""
        self._arguments, self._state = args, state
        if model is None or (self._watched is not None and self._watched() is model):
            return
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._watched = watch_forward(model, self.look), weakref.ref(model)

    on_train_begin = on_init_end  # The model that is trained may be another one (`model_init`).

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        """Check the gradients before they spoil the weights."""
        if self.recorded is not None or model is None or self._last is None:
            return
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        # The sum is cheap but may itself overflow; only then is every value checked.
        sums = [gradient.sum(dtype=torch.float32).to(gradients[0].device) for gradient in gradients]
        if not sums or bool(torch.isfinite(torch.stack(sums)).all()):
            return
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            self._record(model, *self._last, noticed="gradients", training=True)

    def look(self, model: nn.Module, inputs: dict[str, Any], output: Any) -> None:
        """Judge one forward, and record it if it is bad. Called by the hook on the model."""
        if self.recorded is not None:
            return
        loss, logits = loss_of(output), logits_of(output)
        noticed = "loss" if loss is not None else "logits"
        if logits is None and loss is None:
            logits, noticed = embeddings_of(output), "embeddings"
        judged = loss
        if judged is None:
            if logits is None or not logits.is_floating_point() or not logits.numel():
                return
            judged = logits.amax()
        value = float(judged.detach())
        # References only: nothing is copied unless it turns out to be bad.
        self._last = dict(inputs), value if loss is not None else None
        if math.isfinite(value):
            if loss is not None and model.training:
                self._losses = [*self._losses[-KEPT_LOSSES + 1 :], value]
            return
        self._record(model, *self._last, noticed=noticed, training=model.training)

    def _record(
        self, model: nn.Module, inputs: dict[str, Any], loss: float | None, *, noticed: str, training: bool
    ) -> None:
        arguments, autocast = self._arguments, None
        if arguments is not None:
            autocast = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else None
        about = About.of(
            model,
            training=training,
            step=0 if self._state is None else self._state.global_step,
            grad=noticed == "gradients" or torch.is_grad_enabled(),
            autocast=autocast,
            learning_rate=None if arguments is None else arguments.learning_rate,
            loss=None if loss is None else loss if math.isfinite(loss) else str(loss),
            losses=list(self._losses),
            noticed=noticed,
        )
        # Saving may run the model, as sentence-transformers does for its model card.
        if self._handle is not None:
            self._handle.remove()
        saved = self._save_weights and hasattr(model, "save_pretrained")
        write_case(self._folder, model if saved else None, inputs, about)
        self.recorded = self._folder
        self._last = None
        what = "The %s of step %d are not finite; the batch is in %s: mpsdiag trace %s"
        logger.warning(what, noticed, about.step, self._folder, self._folder)
