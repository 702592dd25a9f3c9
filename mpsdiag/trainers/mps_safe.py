"""`MPSSafeTrainer`: a drop-in `transformers.Trainer` whose evaluation can be trusted on MPS."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from transformers import Trainer

from mpsdiag import emulation
from mpsdiag.errors import BadInput, one_of
from mpsdiag.inputs.nonfinite import (
    SENTENCES,
    Cause,
    NonFiniteLogitsError,
    contains_nan,
    explain_cause,
    is_finite,
)
from mpsdiag.trainers.chunked_loss import CHUNK_BYTES
from mpsdiag.trainers.cpu_losses import evaluation_losses_on_cpu, move, to_cpu
from mpsdiag.trainers.evaluation_tally import EvaluationTally
from mpsdiag.trainers.shorten import first_examples

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)

Step = tuple[Any, Any, Any]
OnNonFinite = Literal["cpu_forward", "keep", "raise"]
_ON_NONFINITE: Final = ("cpu_forward", "keep", "raise")


class MPSSafeTrainer(Trainer):
    """Evaluates with the loss computed on the CPU, and repeats a batch there if the device made it non-finite.

    Training is that of `transformers.Trainer`. So is everything else where the arguments name another device than MPS
    (real or emulated), unless `always` is given: the metrics have no names that the stock ones lack, and only
    `eval_max_batches` has an effect. In evaluation and prediction on MPS

    - losses are computed on the CPU from logits and labels, in chunks of tokens, and go back to the device. They equal
      the stock losses bit for bit. Only a `compute_loss_func` of the user needs a batch's logits on the CPU at once;
    - logits that are already non-finite cannot be helped by that. See `on_nonfinite_logits`;
    - `eval_nonfinite_batches` (those whose final loss is not finite) and, if any, `eval_cpu_forward_batches` are added
      to the metrics; `nonfinite_causes` holds why, for the last evaluation.

    Args:
        *args: As `transformers.Trainer`.
        on_nonfinite_logits: `cpu_forward` evaluates such a batch again on a CPU copy of the model, made at most once
            per evaluation, and warns once; `keep` leaves the loss as it is; `raise` ends the evaluation with
            `NonFiniteLogitsError`.
        eval_max_batches: Evaluate on at most this many batches, the first ones. Prediction takes all.
        always: Act on every device, not only on MPS.
        loss_chunk_bytes: Size of a chunk of logits on its way to the CPU.
        **kwargs: As `transformers.Trainer`.

    Raises:
        BadInput: An unknown `on_nonfinite_logits`, or an `eval_max_batches` below 1.
    """

    def __init__(
        self,
        *args: Any,
        on_nonfinite_logits: OnNonFinite = "cpu_forward",
        eval_max_batches: int | None = None,
        always: bool = False,
        loss_chunk_bytes: int = CHUNK_BYTES,
        **kwargs: Any,
    ) -> None:
        one_of("on_nonfinite_logits", on_nonfinite_logits, _ON_NONFINITE)
        if eval_max_batches is not None and eval_max_batches < 1:
            raise BadInput(f"eval_max_batches is {eval_max_batches}; give a number of batches from 1 upward.")
        self.on_nonfinite_logits = on_nonfinite_logits
        self.eval_max_batches = eval_max_batches
        self.always = always
        self.loss_chunk_bytes = loss_chunk_bytes
        self.nonfinite_causes: dict[Cause, int] = {}
        self._tally = EvaluationTally()
        self._inputs_to_cpu = False
        self._said: set[Cause] = set()
        super().__init__(*args, **kwargs)

    def acts(self) -> bool:
        """Say whether evaluations differ from those of the stock Trainer: on MPS, or with `always`."""
        return self.always or emulation.in_effect(self.args.device)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """As the stock one, cut to the first `eval_max_batches` batches."""
        if self.eval_max_batches is None:
            return super().get_eval_dataloader(eval_dataset)
        own: Any = self.eval_dataset
        whole = (
            own
            if eval_dataset is None
            else own[eval_dataset]
            if isinstance(eval_dataset, str)
            else eval_dataset
        )
        batch = self.args.eval_batch_size * self.args.world_size
        return super().get_eval_dataloader(first_examples(whole, self.eval_max_batches * batch))

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the stock one; where this trainer acts, with the counts of non-finite batches among the metrics."""
        self._tally = EvaluationTally()
        try:
            output: Any = super().evaluation_loop(*args, **kwargs)
            prefix = kwargs.get("metric_key_prefix", args[4] if len(args) > 4 else "eval")
            if self.acts():
                output.metrics.update(self._tally.metrics(prefix))
            self.nonfinite_causes = dict(self._tally.causes)
        finally:
            self._tally = (
                EvaluationTally()
            )  # Frees the CPU copy: the weights may change before the next evaluation.
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Step:
        """Evaluate one batch: (loss, logits, labels), each possibly None; see `Trainer.prediction_step`.

        Raises:
            NonFiniteLogitsError: The result is not finite and `on_nonfinite_logits` is `raise`.
        """
        step = self._step(model, inputs, prediction_loss_only, ignore_keys)
        self._tally.note(step[0])
        return step

    def _step(self, model: nn.Module, inputs: dict[str, Any], loss_only: bool, ignore_keys: Any) -> Step:
        if not self.acts():
            return super().prediction_step(model, inputs, loss_only, ignore_keys=ignore_keys)
        with evaluation_losses_on_cpu(self, self.loss_chunk_bytes):
            step = super().prediction_step(model, inputs, loss_only, ignore_keys=ignore_keys)
        if is_finite(step[0]) and not contains_nan(step[1]):
            return step
        return self._deal_with(step, inputs, loss_only, ignore_keys)

    def _deal_with(self, step: Step, inputs: dict[str, Any], loss_only: bool, ignore_keys: Any) -> Step:
        cause = explain_cause(inputs, self._bare_model())
        if cause == "unknown" and self.on_nonfinite_logits == "cpu_forward":
            step = self.step_on_cpu(inputs, loss_only, ignore_keys)
            cause = "device" if is_finite(step[0]) and not contains_nan(step[1]) else "same_on_cpu"
        self._tally.causes[cause] += 1
        if self.on_nonfinite_logits == "raise":
            raise NonFiniteLogitsError(f"The evaluation of a batch is not finite: {SENTENCES[cause]}.")
        self._say(cause)
        return step

    def step_on_cpu(
        self, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Step:
        """Evaluate one batch on the CPU copy of the model; the result is on the device of the arguments."""
        twin = self._tally.cpu_model(self._bare_model())
        self._tally.on_cpu += 1
        self._inputs_to_cpu = True
        try:
            with emulation.suspended():
                step = super().prediction_step(twin, inputs, prediction_loss_only, ignore_keys=ignore_keys)
        finally:
            self._inputs_to_cpu = False
        loss, logits, labels = (move(part, self.args.device) for part in step)
        return loss, logits, labels

    def _bare_model(self) -> nn.Module:
        return cast("nn.Module", self.model)  # Optional in its type only: __init__ has made it.

    def _prepare_inputs(self, inputs: dict[str, Tensor | Any]) -> Any:
        return to_cpu(inputs) if self._inputs_to_cpu else super()._prepare_inputs(inputs)

    def _say(self, cause: Cause) -> None:
        """Warn once about a cause, and say what was done about it."""
        if cause in self._said:
            return
        self._said.add(cause)
        done = {
            "device": "Such batches are evaluated again on a copy of the model on the CPU.",
            "same_on_cpu": "The loss stays as it is.",
        }.get(cause, "The loss stays as it is.")
        logger.warning("The evaluation of a batch is not finite: %s. %s", SENTENCES[cause], done)
