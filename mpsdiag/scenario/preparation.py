"""Build a scenario: the model on its device with its attention, a Trainer around it, and the batches.

`logging_nan_inf_filter` is off: with it on, transformers shows a NaN training loss as 0.0 and, since 5.23, leaves NaN
batches out of eval_loss. In a matrix, the variants of the Trainer show where a NaN comes from.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from mpsdiag import device as devices
from mpsdiag.errors import BadInput
from mpsdiag.fixes.model import put_in_place
from mpsdiag.inputs.models import attention_for, build_model, fitting_length, load_task, require_known_tokens
from mpsdiag.inputs.modules import over_tensors
from mpsdiag.inputs.tasks import Task
from mpsdiag.inputs.texts import greatest_id, load_texts
from mpsdiag.inputs.tokenizer import load_processor
from mpsdiag.scenario.reference import Batch
from mpsdiag.scenario.scenario import LEARNING_RATE, Scenario
from mpsdiag.trainers.mps_safe import MPSSafeTrainer, Step


@dataclass
class PreparedScenario:
    """A scenario that has been built: the model on its device with its attention, a Trainer, and the batches."""

    scenario: Scenario
    model: PreTrainedModel
    task: Task
    processor: Any
    """The tokenizer, or the processor of an image-text model."""
    trainer: Any
    train_batches: list[Batch]
    eval_batches: list[Batch]
    losses: list[Tensor] = field(default_factory=list)
    max_length: int = 0
    """The length of the scenario, limited to the number of positions of the model."""
    _optimizer: torch.optim.Optimizer | None = None

    def train_step(self, batch: Batch) -> None:
        """One optimizer step on one batch, as the Trainer does it; the caller synchronizes."""
        if self._optimizer is None:
            self._optimizer = self.trainer.create_optimizer()
            # Set by Trainer.train, which is not run here; the loss is divided by it.
            self.trainer.current_gradient_accumulation_steps = 1
        self.model.train()
        self.trainer.training_step(self.model, batch)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def eval_step(self, batch: Batch) -> None:
        """The Trainer's evaluation of one batch: loss only; the caller synchronizes."""
        self.model.train(mode=False)
        self.trainer.prediction_step(self.model, batch, prediction_loss_only=True)


@contextmanager
def prepare(scenario: Scenario) -> Iterator[PreparedScenario]:
    """Build a scenario; at the end of the block its attention and its scratch folder are removed.

    Raises BadInput if model or data cannot be loaded, or if the data gives too few sequences.
    """
    with ExitStack() as stack:
        devices.seed_everything(scenario.seed)
        task, _ = load_task(scenario.model, scenario.task)
        processor = load_processor(scenario.model, task, padding_side=scenario.padding_side)
        texts = _texts(scenario)  # A missing file is reported before a model is loaded.
        model = build_model(
            scenario.model, seed=scenario.seed, dtype=scenario.dtype, from_config=False, task=scenario.task
        )
        longest = fitting_length(model, scenario.max_length)
        train_rows, eval_rows = (
            task.rows(some, processor, longest, config=model.config, seed=scenario.seed) for some in texts
        )
        _check_rows(scenario, model, processor, train_rows, eval_rows)
        stack.enter_context(put_in_place(model, attention_for(model, scenario.attn_implementation)))
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="mpsdiag-"))
        prepared = PreparedScenario(scenario, model, task, processor, None, [], [], max_length=longest)
        # The cell is about that trainer: it acts on every device, not only where it is needed.
        more: dict[str, Any] = {"always": True} if scenario.trainer == "mps_safe" else {}
        prepared.trainer = _recording(TRAINERS[scenario.trainer], prepared.losses)(
            model=model,
            args=_arguments(scenario, Path(scratch)),
            data_collator=task.collator(processor, model, pad_to_multiple_of=scenario.pad_to_multiple_of),
            compute_loss_func=task.loss,
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            **more,
        )
        prepared.trainer.remove_callback(PrinterCallback)
        prepared.train_batches = _batches(prepared.trainer, prepared.trainer.get_train_dataloader())
        prepared.eval_batches = _batches(prepared.trainer, prepared.trainer.get_eval_dataloader())
        yield prepared


def _texts(scenario: Scenario) -> tuple[list[str], list[str]]:
    """Evaluation takes the first texts, training the next ones, or those of its own data set."""
    wanted_eval = scenario.eval_max_batches * scenario.batch_size
    wanted_train = max(1, scenario.max_steps) * scenario.batch_size
    if scenario.eval_dataset is None:
        texts = load_texts(scenario.dataset, split="train", limit=wanted_eval + wanted_train)
        return texts[wanted_eval:] or texts, texts[:wanted_eval]
    eval_texts = load_texts(scenario.eval_dataset, split="train", limit=wanted_eval)
    return load_texts(scenario.dataset, split="train", limit=wanted_train), eval_texts


def _check_rows(
    scenario: Scenario, model: PreTrainedModel, processor: Any, train_rows: list[Any], eval_rows: list[Any]
) -> None:
    """Refuse data without sequences, or with token ids that the model has no embeddings for."""
    if not train_rows or not eval_rows:
        raise BadInput(f"Data set '{scenario.dataset}' gives no sequences. Give one with at least two lines of text.")
    tokenizer = getattr(processor, "tokenizer", processor)
    greatest = max(greatest_id([*train_rows, *eval_rows]), tokenizer.pad_token_id or 0)
    require_known_tokens(model, greatest, scenario.model)


def _arguments(scenario: Scenario, folder: Path) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=max(1, scenario.max_steps),
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        per_device_train_batch_size=scenario.batch_size,
        per_device_eval_batch_size=scenario.batch_size,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        seed=scenario.seed,
        use_cpu=devices.kind_of(scenario.device) == "cpu",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        label_names=["labels"],
        # Beside torch 2.7 and older the default divides in float16 by an epsilon that is 0 there.
        optim="adamw_torch_fused",
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # one device is what is diagnosed
    return arguments


def _recording(base: type[Trainer], losses: list[Tensor]) -> type[Trainer]:
    """The same trainer, which also keeps the loss of every evaluated batch (on its device)."""

    class Recording(base):  # type: ignore[misc, valid-type]  # the base is chosen at run time
        def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
            result = super().prediction_step(*args, **kwargs)
            losses.append(result[0])
            return result

    return Recording


def _batches(trainer: Any, loader: Any) -> list[Batch]:
    return [trainer._prepare_inputs(dict(batch)) for batch in loader]


class CpuLossTrainer(MPSSafeTrainer):
    """Only computes the evaluation loss on the CPU: NaN logits stay NaN."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"always": True, "on_nonfinite_logits": "keep", **kwargs})


class CpuForwardTrainer(MPSSafeTrainer):
    """Evaluates every batch on a CPU copy of the model, made once per evaluation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"always": True, **kwargs})

    def _mps_safe_step(self, model: Any, inputs: Any, stock: Callable[[Any], Step]) -> Step:
        del model, inputs
        return self._mps_safe_step_on_cpu(stock)


class GradEvalTrainer(Trainer):
    """Evaluates with gradients enabled, which keeps SDPA of torch 2.5 to 2.8 off its fast path on MPS.

    The graph of a batch is kept until its loss is known. torch leaves the fast path only where query, key or value
    require a gradient: below the first trainable layer of a frozen model nothing changes.
    """

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As the stock method, but in evaluation under `torch.enable_grad`, with detached results."""
        if model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with torch.enable_grad():
            loss, outputs = super().compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        if not return_outputs:
            return loss.detach()
        return loss.detach(), over_tensors(outputs, lambda tensor: tensor.detach())


TRAINERS: Final[dict[str, type[Trainer]]] = {
    "standard": Trainer,
    "mps_safe": MPSSafeTrainer,
    "cpu_loss": CpuLossTrainer,
    "cpu_forward": CpuForwardTrainer,
    "grad_eval": GradEvalTrainer,
}
