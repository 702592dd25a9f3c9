"""The training pipeline: parse, build, train, evaluate, summarize."""

import contextlib
import itertools
import logging
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from transformers import DataCollatorForSeq2Seq, Trainer

from mpsdiag.emulation.mode import in_effect
from mpsdiag.errors import BadInput, MpsdiagError
from mpsdiag.findings import FirstLabel
from mpsdiag.inputs.installed import as_on_mps
from mpsdiag.inputs.models import build_model, fitting_length, load_task, require_known_tokens
from mpsdiag.inputs.names import is_builtin_model
from mpsdiag.inputs.nonfinite import IGNORED_LABEL
from mpsdiag.inputs.tokenizer import load_processor
from mpsdiag.invariance.first_label import first_label
from mpsdiag.serialization import dumps, write_atomically
from mpsdiag.trainers.callbacks import NonFiniteCallback
from mpsdiag.trainers.mps_safe import MPSSafeTrainer, first_examples
from mpsdiag.training import console
from mpsdiag.training.command_line import RunArguments, choose_attention, parse, require_available
from mpsdiag.training.prepare_data import Prepared, prepare_examples, rows_of_task
from mpsdiag.training.resuming import last_whole, save_undisturbed, to_resume_from
from mpsdiag.training.summary import lines_for_people, losses_of, mark_as_emulated, write_summary
from mpsdiag.words import EXIT_FOUND, EXIT_INTERRUPTED, EXIT_OK

logger = logging.getLogger(__name__)

TRACEBACK_FILE: Final = "traceback.txt"
FIRST_BATCHES: Final = 4
"""Evaluation batches in which labels predicted at padding are examined."""


def main(arguments: Sequence[str]) -> int:
    """Run the pipeline from a command line and return its exit code.

    0: done. 1: the training failed. 130: interrupted; the last checkpoint is whole. Raises BadInput (exit
    code 2), and SystemExit for `--help`.
    """
    with console.messages_on_stderr():
        return Run(parse(arguments)).execute()


def _first_label(trainer: Trainer) -> FirstLabel | None:
    """The effect of labels predicted at padding on the loss of the first evaluation batches; None if there are none."""
    model: Any = trainer.model
    model.eval()
    batches = [
        trainer._prepare_inputs(dict(batch)) for batch in itertools.islice(trainer.get_eval_dataloader(), FIRST_BATCHES)
    ]
    with torch.no_grad(), trainer.compute_loss_context_manager():
        return first_label(model, batches, (model(**batch).logits for batch in batches))


class Run:
    """One run of the pipeline."""

    def __init__(self, arguments: RunArguments) -> None:
        self.arguments = arguments
        self.output_dir = Path(arguments.training.output_dir or ".")
        self.watcher = NonFiniteCallback(stop_training=arguments.data.stop_on_nonfinite)
        self.trainer: Trainer | None = None
        self.facts: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        self.first_label: FirstLabel | None = None
        self._causal = True
        self._started = time.time()

    def execute(self) -> int:
        """Train and evaluate, write the summary, and return the exit code."""
        emulation = self.arguments.emulation
        console.require_writable(self.output_dir)
        evaluates = self.arguments.model.mode == "evaluate"
        checkpoint = None if evaluates else to_resume_from(self.arguments.resume, self.output_dir)
        if emulation is not None:
            console.say(console.emulation_announcement(emulation.describe()))
        status, code = "failed", EXIT_FOUND
        try:
            with as_on_mps(emulation):
                self._build()
                self.facts["resumed_from"] = checkpoint
                self._work(checkpoint)
            status, code = "finished", EXIT_OK
        except KeyboardInterrupt:
            status, code = "interrupted", EXIT_INTERRUPTED
            self._say_interrupted()
        except BadInput:
            raise
        except Exception as problem:  # noqa: BLE001 - whatever fails in training ends in one sentence and exit code 1
            self._say_failed(problem)
        with contextlib.suppress(RuntimeError):  # A device that failed can no longer be asked.
            self.watcher.count_rest()
        self._sum_up(status)
        return code

    def _build(self) -> None:
        asked, data, training = self.arguments.model, self.arguments.data, self.arguments.training
        trusted = asked.trust_remote_code
        on_mps = in_effect(training.device)
        fix = on_mps and not asked.disable_mps_fix
        mode = choose_attention(asked.attn_implementation, on_mps=on_mps, fix_disabled=asked.disable_mps_fix)
        require_available(mode, self.arguments.device, asked.dtype, training=asked.mode != "evaluate")
        task, _ = load_task(asked.model, asked.task, trust_remote_code=trusted)
        causal = self._causal = task.name == "text-generation"
        if not causal and asked.mode != "evaluate":
            raise BadInput(
                f"'{asked.model}' is a model for {task.name}; mpsdiag train trains causal language models. Use "
                "--mode evaluate, or mix MPSSafeTrainer into the Trainer of your own script."
            )
        if mode == "eager" and asked.attn_implementation != "eager":
            console.say(console.switched_to_eager(self._device_in_words()))
        model = build_model(
            asked.model,
            seed=training.seed,
            dtype=asked.dtype,
            attention=mode,
            from_config=asked.mode == "pretrain",
            trust_remote_code=trusted,
            task=asked.task,
        )
        if asked.mode != "pretrain" and is_builtin_model(asked.model):
            logger.warning("'%s' has no checkpoint: its weights are random, seeded by --seed.", asked.model)
        processor = load_processor(asked.model, task, padding_side=data.padding_side, trust_remote_code=trusted)
        length = fitting_length(model, data.max_length)
        tokenizer = getattr(processor, "tokenizer", processor)
        examples = (
            prepare_examples(data, tokenizer, max_length=length, mode=asked.mode, seed=training.seed)
            if causal
            else Prepared(None, rows_of_task(data, task, processor, model, max_length=length, seed=training.seed))
        )
        padded = 0 if data.use_packing else tokenizer.pad_token_id
        require_known_tokens(model, max(examples.greatest, padded), asked.model)
        self._describe(model, mode, examples, length)
        console.say(console.trainer_announcement(on_mps=on_mps, fix_disabled=not fix))
        kind: type[Trainer] = MPSSafeTrainer if fix else Trainer
        evaluation: Any = examples.evaluation
        if data.eval_max_batches is not None:
            evaluation = first_examples(evaluation, data.eval_max_batches * training.eval_batch_size)
        if not causal:
            training.remove_unused_columns, training.label_names = False, ["labels"]
        self.trainer = kind(
            model=model,
            args=training,
            train_dataset=examples.train,
            eval_dataset=evaluation,
            processing_class=processor,
            data_collator=DataCollatorForSeq2Seq(
                tokenizer, label_pad_token_id=IGNORED_LABEL, pad_to_multiple_of=data.pad_to_multiple_of
            )
            if causal
            else task.collator(processor, model, pad_to_multiple_of=data.pad_to_multiple_of),
            compute_loss_func=task.loss,
        )
        if self.arguments.emulation is not None:
            mark_as_emulated(self.trainer)
        self.watcher.watch(self.trainer)
        save_undisturbed(self.trainer)

    def _work(self, checkpoint: Path | None) -> None:
        trainer = self.trainer
        if trainer is None:
            raise RuntimeError("the Trainer has not been built")
        # The Trainer prints its log to stdout, which is for data.
        with contextlib.redirect_stdout(sys.stderr):
            if self.arguments.model.mode != "evaluate":
                result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
                self.metrics["train_loss"] = result.training_loss
                trainer.save_model()
                trainer.save_state()
            self.metrics.update(trainer.evaluate())
            if self._causal:
                self.first_label = _first_label(trainer)

    def _device_in_words(self) -> str:
        emulation = self.arguments.emulation
        return emulation.describe() if emulation is not None else self.arguments.device.upper()

    def _describe(self, model: Any, mode: str, examples: Prepared, length: int) -> None:
        parts = {"train": examples.train, "evaluation": examples.evaluation}
        self.facts = {
            "model": self.arguments.model.model,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "attention": mode,
            "max_length": length,
            "examples": {name: None if part is None else len(part) for name, part in parts.items()},
            "tokens": {name: None if part is None else part.tokens for name, part in parts.items()},
        }

    def _say_interrupted(self) -> None:
        last = last_whole(self.output_dir)
        step = 0 if self.trainer is None else self.trainer.state.global_step
        where = f"The last whole checkpoint is '{last}'; continue with --resume_from_checkpoint latest."
        console.say(f"Interrupted at step {step}. {where if last else 'No checkpoint had been written yet.'}")

    def _say_failed(self, problem: BaseException) -> None:
        text = str(problem).strip() or type(problem).__name__
        if isinstance(problem, MpsdiagError):
            console.say(f"Training failed: {text}")
            return
        path = self.output_dir / TRACEBACK_FILE
        where = f"The traceback is in '{path}'."
        try:
            write_atomically(path, "".join(traceback.format_exception(problem)))
        except BadInput as refusal:
            where = str(refusal)
        first = text.splitlines()[0].rstrip(".")
        console.say(f"Training failed: {type(problem).__name__}: {first}. {where}")

    def _sum_up(self, status: str) -> None:
        summary = self.summary(status)
        json = self.arguments.model.json
        sys.stdout.write("\n".join([dumps(summary)] if json else lines_for_people(summary)) + "\n")
        sys.stdout.flush()
        path = write_summary(self.output_dir, summary)  # after the answer: the disk may be full
        sys.stdout.write("" if json else f"summary = {path}\n")

    def summary(self, status: str) -> dict[str, Any]:
        """The content of `summary.json`, without the versions."""
        trainer, emulation = self.trainer, self.arguments.emulation
        history = [] if trainer is None else trainer.state.log_history
        return {
            "status": status,
            "command": " ".join(sys.argv),
            "device": self.arguments.device,
            "emulated": None if emulation is None else emulation.describe(),
            "trainer": None if trainer is None else type(trainer).__name__,
            "mps_fix": isinstance(trainer, MPSSafeTrainer),
            **self.facts,
            "steps": 0 if trainer is None else trainer.state.global_step,
            "train_loss": self.metrics.get("train_loss"),
            "eval_loss": self.metrics.get("eval_loss"),
            "losses": losses_of(history),
            "first_label": None if self.first_label is None else dict(self.first_label),
            "nonfinite": {
                "train_batches": self.watcher.train.bad,
                "train_batches_seen": self.watcher.train.batches,
                "grad_norms": self.watcher.grad_norms,
                "eval_batches": self.metrics.get("eval_nonfinite_batches", self.watcher.evaluation.bad),
                "eval_batches_seen": self.watcher.evaluation.batches,
                "eval_on_cpu": self.metrics.get("eval_cpu_forward_batches", 0),
                "causes": getattr(trainer, "nonfinite_causes", {}),
            },
            "last_checkpoint": last_whole(self.output_dir),
            # Nothing is timed under emulation.
            "seconds": round(time.time() - self._started, 3) if emulation is None else None,
            "arguments": {
                "model": asdict(self.arguments.model),
                "data": asdict(self.arguments.data),
                "resume_from_checkpoint": self.arguments.resume,
                "training": self.arguments.training.to_sanitized_dict(),
            },
        }
