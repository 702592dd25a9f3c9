"""`NonFiniteCallback`: shows what transformers hides when losses are not finite, in any Trainer."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from mpsdiag.emulation import mode as emulation
from mpsdiag.inputs.nonfinite import SENTENCES, LossCause, no_label_counts, weights_are_finite
from mpsdiag.trainers import forward_watch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


class NonFiniteCallback(TrainerCallback):
    """Counts non-finite losses in training and evaluation, logs the counts, warns once, and can stop training.

    transformers logs a non-finite training loss as the mean of the others (0.0 if there are none), and since 5.23
    leaves non-finite batches out of `eval_loss`. This callback sees the losses where the model computes them: give it
    to the Trainer as `callbacks=[NonFiniteCallback()]`. Label smoothing and `compute_loss_func` make the loss outside
    the model: then it judges the logits or, after `NonFiniteCallback().watch(trainer)`, the loss itself.

    `eval_nonfinite_batches` is added to the metrics and the log of an evaluation in which batches were judged, and
    `nonfinite_train_batches` and `nonfinite_grad_norms`, once they are not zero, to the log of the training. Until the
    first such loss it waits for the device once a step, as transformers' own filter does, to check the weights before
    the optimizer changes them.

    Attributes:
        train: Counts of all training batches (micro-batches of gradient accumulation) so far.
        evaluation: Counts of the last evaluation.
        evaluations: Counts of all evaluations so far.
        grad_norms: Number of non-finite logged gradient norms.

    Args:
        stop_training: End training at the first non-finite step or evaluation. This waits for the device after every
            step.
    """

    def __init__(self, *, stop_training: bool = False) -> None:
        self.stop_training = stop_training
        self.train = forward_watch.BatchCount()
        self.evaluation = forward_watch.BatchCount()
        self.evaluations = forward_watch.BatchCount()
        self.grad_norms = 0
        self._train = forward_watch.Counter()
        self._evaluation = forward_watch.Counter()
        self._pending: tuple[Tensor, Tensor | None] | None = None
        self._handle: RemovableHandle | None = None
        self._watched: object = None
        self._trainer: Trainer | None = None
        self._warned: set[str] = set()
        self._weights_were_finite: bool | None = None

    def watch(self, trainer: Trainer) -> NonFiniteCallback:
        """Watch the losses of this Trainer itself, wherever they are computed; it need not be given as a callback too.

        From here on it comes before the other callbacks, so that TensorBoard, Weights & Biases and their like get its
        counts with the log.
        """
        callbacks = trainer.callback_handler.callbacks
        if self in callbacks:
            callbacks.remove(self)
        callbacks.insert(0, self)
        self._unhook()
        self._trainer = trainer
        target: Any = trainer
        target.training_step = forward_watch.noting(trainer.training_step, self._note_training_step)
        target.prediction_step = forward_watch.noting(trainer.prediction_step, self._note_prediction_step)
        return self

    # What happens in the Trainer.

    def on_init_end(self, *_: Any, model: Any = None, **__: Any) -> None:
        """Start watching the model, so that an evaluation without training is seen from its first batch on."""
        self._hook(model)

    on_train_begin = on_init_end  # It may be another model than at the beginning (`model_init`).

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        """Check the weights that gave the first bad loss, before the optimizer changes them."""
        unknown = "training" not in self._warned and self._weights_were_finite is None
        if unknown and model is not None and self._train.read().bad:
            self._weights_were_finite = weights_are_finite(model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Stop here, if requested, after a non-finite loss in this step."""
        if self.stop_training and self._train.read().bad:
            self._settle_training(args, state, model)
            control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, *_: Any, model: Any = None, **__: Any) -> None:
        """Count the steps after the last log; with fewer steps than `logging_steps` these are all there were."""
        self._settle_training(args, state, model)

    def count_rest(self) -> None:
        """Count the batches after the last log of a training that was ended from outside. Waits for the device."""
        self.train += self._train.take()

    def on_prediction_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        """End of an evaluation batch; with `generate` it may have been many forwards."""
        self._hook(model)
        if self._pending is not None:
            self._evaluation.note(*self._pending)
            self._pending = None

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, logs: Any = None, **more: Any
    ) -> None:
        """Add the counts to what is logged."""
        model = more.get("model")
        if logs is None:
            return
        prefix = forward_watch.evaluation_prefix(logs)
        added: dict[str, Any] = {}
        if prefix is not None:
            self._settle_evaluation(args, logs, prefix, model)
            added = self._counted(logs, prefix)
        elif "loss" in logs:
            self.grad_norms += not math.isfinite(float(logs.get("grad_norm") or 0.0))
            self._settle_training(args, state, model)
            counts = {"nonfinite_train_batches": self.train.bad, "nonfinite_grad_norms": self.grad_norms}
            added = {name: count for name, count in counts.items() if count}
            if added and self.stop_training:
                control.should_training_stop = True
        logs.update(added)
        if state.log_history and added:
            state.log_history[-1].update(added)

    def on_evaluate(self, args: Any, state: Any, control: TrainerControl, metrics: Any = None, **_: Any) -> None:
        """Add the count to the metrics that the caller of `evaluate` gets, and stop if asked to."""
        del args, state
        prefix = forward_watch.evaluation_prefix(metrics or {})
        if metrics is not None and prefix is not None:
            metrics.update(self._counted(metrics, prefix))
            if self.stop_training and metrics.get(f"{prefix}_nonfinite_batches"):
                control.should_training_stop = True

    def on_predict(self, args: TrainingArguments, state: Any, control: Any, metrics: Any, **more: Any) -> None:
        """Add the count to the metrics of a prediction."""
        del state, control
        prefix = forward_watch.evaluation_prefix(metrics)
        if prefix is not None:
            self._settle_evaluation(args, metrics, prefix, more.get("model"))
            metrics.update(self._counted(metrics, prefix))

    def _counted(self, metrics: dict[str, Any], prefix: str) -> dict[str, Any]:
        """The count of an evaluation, that of the Trainer if it has one; none if no batch was checked."""
        name = f"{prefix}_nonfinite_batches"
        if name in metrics:
            return {name: metrics[name]}
        judged = self.evaluation.batches and not self._loss_unseen(metrics, prefix)
        return {name: self.evaluation.bad} if judged else {}

    def _loss_unseen(self, metrics: dict[str, Any], prefix: str) -> bool:
        """The loss is not finite, and no batch that was judged is to blame: it is made outside the model."""
        loss = metrics.get(f"{prefix}_loss")
        return isinstance(loss, float) and not math.isfinite(loss) and not self.evaluation.bad

    # Seeing losses.

    def _hook(self, model: Any) -> None:
        if self._trainer is not None or model is None or model is self._watched:
            return
        self._unhook()
        self._watched = model
        self._handle = forward_watch.watch_forward(model, self._note_forward)

    def _unhook(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._watched = None

    def _note_forward(self, model: nn.Module, inputs: dict[str, Any], output: Any) -> None:
        bad, unlabelled = forward_watch.judge_output(output), no_label_counts(inputs)
        if bad is None:
            return
        if model.training:
            self._train.note(bad, unlabelled)
        elif self._pending is None:
            self._pending = (bad, unlabelled)
        else:
            self._pending = (self._pending[0] | bad, self._pending[1])

    def _note_training_step(self, result: Any, _model: Any, inputs: Any, *_: Any, **__: Any) -> None:
        self._train.note(forward_watch.judge_loss(result), no_label_counts(inputs))

    def _note_prediction_step(self, result: Any, _model: Any, inputs: Any, *_: Any, **__: Any) -> None:
        if result[0] is not None:
            self._pending = (forward_watch.judge_loss(result[0]), no_label_counts(inputs))

    # Reporting what was seen.

    def _settle_training(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        new = self._train.take()
        self.train += new
        if new.bad:
            cause = _cause(new, model, args, self._weights_were_finite)
            self._warn(
                "training",
                f"{new.bad} of {new.batches} training batches up to step {state.global_step} had a non-finite "
                f"loss; transformers logs such a loss as the mean of the others, or 0.0: {SENTENCES[cause]}.",
            )
        elif self.grad_norms and new.batches:
            scaled = " With fp16 the first steps may overflow until the loss scale fits; such steps are skipped."
            self._warn(
                "training",
                f"The gradient norm up to step {state.global_step} is not finite, but the losses are: the derivative "
                f"of an operation is the cause, and `mpsdiag trace --train` finds it.{scaled * args.fp16}",
            )

    def _settle_evaluation(self, args: TrainingArguments, metrics: dict[str, Any], prefix: str, model: Any) -> None:
        new = self._evaluation.take()
        own = metrics.get(f"{prefix}_nonfinite_batches")
        # The Trainer counts final losses; the forward that was seen may have been repeated.
        if own is not None:
            new = forward_watch.BatchCount(new.batches, int(own), min(new.unlabelled, int(own)))
        self.evaluation = new
        self.evaluations += new
        if own is None and new.batches and self._loss_unseen(metrics, prefix):
            self._warn(
                "evaluation",
                f"{prefix}_loss is not finite, but the model's own outputs are: the loss is made outside the model, "
                "where NonFiniteCallback().watch(trainer) sees it.",
            )
        if new.bad:
            loss = float(metrics.get(f"{prefix}_loss", math.nan))
            hidden = f"; {prefix}_loss is the mean of the others" if math.isfinite(loss) else ""
            cause = _cause(new, model, args)
            self._warn(
                "evaluation",
                f"{new.bad} of {new.batches} evaluation batches are not finite{hidden}: {SENTENCES[cause]}.",
            )

    def _warn(self, phase: str, sentence: str) -> None:
        if phase not in self._warned:
            self._warned.add(phase)
            logger.warning("%s", sentence)


def _cause(
    count: forward_watch.BatchCount, model: Any, args: TrainingArguments, weights_were_finite: bool | None = None
) -> LossCause:
    if count.bad and count.unlabelled == count.bad:
        return "no_labels"
    if weights_were_finite is None:
        weights_were_finite = model is None or weights_are_finite(model)
    if not weights_were_finite:
        return "bad_weights"
    return "suspected_device" if emulation.in_effect(args.device) else "unknown"
