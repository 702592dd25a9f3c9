"""`MPSSafeTrainer`: a drop-in `transformers.Trainer` whose evaluation can be trusted on MPS."""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Literal, cast, get_args

from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset
from transformers import Trainer

from mpsdiag.emulation import mode as emulation
from mpsdiag.errors import BadInput, first_line, one_of
from mpsdiag.inputs.installed import compiles_under_a_mode
from mpsdiag.inputs.modules import is_compiled, move, to_cpu, uncompiled
from mpsdiag.inputs.nonfinite import SENTENCES, LossCause, NonFiniteLogitsError, contains_nan, explain_cause, is_finite
from mpsdiag.trainers.cpu_losses import CHUNK_BYTES, evaluation_losses_on_cpu
from mpsdiag.trainers.forward_watch import Counter as LossCounter
from mpsdiag.trainers.forward_watch import judge_loss
from mpsdiag.trainers.second_pass import CpuModels, remember_counts

logger = logging.getLogger(__name__)

Step = tuple[Any, Any, Any]
OnNonFinite = Literal["cpu_forward", "keep", "raise"]


class MPSSafeTrainer(Trainer):
    """Computes evaluation losses on the CPU, and repeats a batch there if the device made it non-finite.

    It mixes with any other Trainer: `class Safe(MPSSafeTrainer, DPOTrainer)`. Training is that of the other one. So is
    everything else if the arguments name a device other than MPS (real or emulated), unless `always` is given: the
    metrics then have only the stock names, and only `eval_max_batches` has an effect. In evaluation and prediction on
    MPS

    - losses are computed on the CPU from logits and labels, in chunks of tokens, and go back to the device. They equal
      the stock losses bit for bit. Only a `compute_loss_func` of the user needs a batch's logits on the CPU at once;
    - this does not help if logits are already non-finite. See `on_nonfinite_logits`;
    - `eval_nonfinite_batches` (those whose final loss is not finite) and, if any, `eval_cpu_forward_batches` are added
      to the metrics; `nonfinite_causes` has the reasons, for the last evaluation.

    Args:
        *args: As `transformers.Trainer`.
        on_nonfinite_logits: `cpu_forward` evaluates such a batch again on a CPU copy of the model, made at most once
            per evaluation, and warns once; the counts of the first pass are undone. `keep` leaves the loss unchanged;
            `raise` ends the evaluation with `NonFiniteLogitsError`.
        eval_max_batches: Evaluate on at most this many batches, the first ones. Prediction uses all batches.
        always: Act on every device, not only on MPS.
        loss_chunk_bytes: Size of a chunk of logits on its way to the CPU.
        **kwargs: As `transformers.Trainer`.

    Raises:
        BadInput: An unknown `on_nonfinite_logits`, or an `eval_max_batches` below 1.
    """

    # Private names have a prefix: the other Trainer of a mix has its own `_step`, `_metrics` and the like.

    def __init__(
        self,
        *args: Any,
        on_nonfinite_logits: OnNonFinite = "cpu_forward",
        eval_max_batches: int | None = None,
        always: bool = False,
        loss_chunk_bytes: int = CHUNK_BYTES,
        **kwargs: Any,
    ) -> None:
        one_of("on_nonfinite_logits", on_nonfinite_logits, get_args(OnNonFinite))
        if eval_max_batches is not None and eval_max_batches < 1:
            raise BadInput(f"eval_max_batches is {eval_max_batches}; give a number of batches from 1 upward.")
        self.on_nonfinite_logits = on_nonfinite_logits
        self.eval_max_batches = eval_max_batches
        self.always = always
        self.loss_chunk_bytes = loss_chunk_bytes
        self.nonfinite_causes: dict[LossCause, int] = {}
        self._mps_safe_tally = _Tally()
        self._mps_safe_inputs_to_cpu = False
        self._mps_safe_warned: set[str] = set()
        super().__init__(*args, **kwargs)

    def acts(self) -> bool:
        """Whether evaluations differ from those of the stock Trainer: on MPS, or with `always`."""
        return self.always or emulation.in_effect(self.args.device)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """As the stock one, cut to the first `eval_max_batches` batches."""
        if self.eval_max_batches is None:
            return super().get_eval_dataloader(eval_dataset)
        own: Any = self.eval_dataset
        named = own[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        batch = self.args.eval_batch_size * self.args.world_size
        whole = own if eval_dataset is None else named
        return super().get_eval_dataloader(first_examples(whole, self.eval_max_batches * batch))

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the stock method; if this trainer acts, the metrics include the counts of non-finite batches."""
        tally = self._mps_safe_tally = _Tally()
        try:
            output: Any = super().evaluation_loop(*args, **kwargs)
            prefix = kwargs.get("metric_key_prefix", args[4] if len(args) > 4 else "eval")
            if self.acts():
                output.metrics.update(tally.metrics(prefix))
            self.nonfinite_causes = dict(tally.causes)
        finally:
            # Frees the CPU copy: the weights may change before the next evaluation.
            self._mps_safe_tally = _Tally()
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None, **more: Any
    ) -> Step:
        """Evaluate one batch: (loss, logits, labels), each possibly None; see `Trainer.prediction_step`.

        Raises NonFiniteLogitsError if the result is not finite and `on_nonfinite_logits` is `raise`.
        """

        def stock(chosen: nn.Module) -> Step:
            return super(MPSSafeTrainer, self).prediction_step(
                chosen, inputs, prediction_loss_only, ignore_keys=ignore_keys, **more
            )

        step = self._mps_safe_step(model, inputs, stock) if self.acts() else stock(model)
        self._mps_safe_tally.note(step[0])
        return step

    def _mps_safe_step(self, model: nn.Module, inputs: Any, stock: Callable[[nn.Module], Step]) -> Step:
        undo = remember_counts(self)
        with evaluation_losses_on_cpu(self, self.loss_chunk_bytes), _uncompiled(model):
            step = stock(model)
        if is_finite(step[0]) and not contains_nan(step[1]):
            return step
        cause = explain_cause(inputs, cast("nn.Module", self.model))
        if cause == "unknown" and self.on_nonfinite_logits == "cpu_forward":
            undo()
            try:
                step = self._mps_safe_step_on_cpu(stock)
                cause = "device" if is_finite(step[0]) and not contains_nan(step[1]) else "same_on_cpu"
            except RuntimeError as problem:
                # Such as a Trainer that makes tensors on its own device.
                self._mps_safe_warn("fails", f"A batch cannot be evaluated again on the CPU: {first_line(problem)}.")
        self._mps_safe_tally.causes[cause] += 1
        if self.on_nonfinite_logits == "raise":
            raise NonFiniteLogitsError(f"The evaluation of a batch is not finite: {SENTENCES[cause]}.")
        done = (
            "Such batches are evaluated again on a copy of the model on the CPU."
            if cause == "device"
            else "The loss is left unchanged."
        )
        self._mps_safe_warn(cause, f"The evaluation of a batch is not finite: {SENTENCES[cause]}. {done}")
        return step

    def _mps_safe_step_on_cpu(self, stock: Callable[[nn.Module], Step]) -> Step:
        """Evaluate one batch on CPU copies of the models; the result is on the device of the arguments."""
        self._mps_safe_tally.on_cpu += 1
        self._mps_safe_inputs_to_cpu = True
        try:
            with self._mps_safe_tally.models.taking_over(self) as twin, emulation.suspended():
                step = stock(twin)
        finally:
            self._mps_safe_inputs_to_cpu = False
        loss, logits, labels = (move(part, self.args.device) for part in step)
        return loss, logits, labels

    def _prepare_input(self, data: Any) -> Any:
        return to_cpu(data) if self._mps_safe_inputs_to_cpu else super()._prepare_input(data)

    def _mps_safe_warn(self, what: str, sentence: str) -> None:
        """Warn once about each kind of problem."""
        if what not in self._mps_safe_warned:
            self._mps_safe_warned.add(what)
            logger.warning("%s", sentence)


def _uncompiled(model: nn.Module) -> AbstractContextManager[Any]:
    """Emulated kernels are Python, which torch.compile would trace through; some releases cannot trace our mode."""
    emulates = emulation.active() is not None
    return uncompiled() if emulates or (is_compiled(model) and not compiles_under_a_mode()) else nullcontext()


class _Tally:
    """The state of one evaluation: non-finite batches, their reasons, and the CPU copies of the models if needed."""

    def __init__(self) -> None:
        self.on_cpu = 0
        self.causes: Counter[LossCause] = Counter()
        self.models = CpuModels()
        self._losses = LossCounter()

    def note(self, loss: Tensor | None) -> None:
        """Count a batch by its final loss."""
        if loss is not None:
            self._losses.note(judge_loss(loss), None)

    def metrics(self, prefix: str) -> dict[str, Any]:
        """The counts as metrics: `eval_nonfinite_batches`, and `eval_cpu_forward_batches` if there were any."""
        seen = self._losses.read()
        found = {f"{prefix}_nonfinite_batches": seen.bad} if seen.batches else {}
        return {**found, f"{prefix}_cpu_forward_batches": self.on_cpu} if self.on_cpu else found


def first_examples(dataset: Any, count: int) -> Any:
    """Cut a dataset to its first `count` examples, without reading it."""
    if dataset is None:
        return None
    if isinstance(dataset, dict):
        return {name: first_examples(part, count) for name, part in dataset.items()}
    if hasattr(dataset, "take") and not hasattr(dataset, "select"):
        return dataset.take(count)
    if not hasattr(dataset, "__len__"):
        return _First(dataset, count)
    kept = range(min(count, len(dataset)))
    return dataset.select(kept) if hasattr(dataset, "select") else Subset(dataset, kept)


class _First(IterableDataset[Any]):
    """The first examples of an iterable dataset."""

    def __init__(self, dataset: Any, count: int) -> None:
        self.dataset = dataset
        self.count: Final = count

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.dataset), self.count)
