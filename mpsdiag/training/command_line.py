"""The command line of the pipeline: its own options, and all of transformers' TrainingArguments."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, NoReturn

from transformers import HfArgumentParser, TrainingArguments

from mpsdiag import device as devices
from mpsdiag import words
from mpsdiag.emulation.selection import Emulation
from mpsdiag.errors import BadInput, close_to, first_line, one_of
from mpsdiag.fixes.modes import MODES, mode_named
from mpsdiag.serialization import require_file
from mpsdiag.training.help_text import render
from mpsdiag.training.resuming import LATEST

logger = logging.getLogger(__name__)

AUTO: Final = "auto"
RUN_MODES: Final = ("pretrain", "sft", "evaluate")
# Names from older releases of transformers and of mpsdiag's other commands, for options with other names here.
_OLD_WORDS: Final = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "attention": "attn_implementation",
    "padding": "padding_side",
    "length": "max_length",
    "steps": "max_steps",
    "eval_batches": "eval_max_batches",
    "packing": "use_packing",
}
_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "max_length": (2, words.MOST),
    **dict.fromkeys(("eval_max_batches", "pad_to_multiple_of"), (1, words.MOST)),
    "max_samples": (1, words.MOST**2),
    **dict.fromkeys(("max_steps", "warmup_steps", "logging_steps", "save_steps", "eval_steps"), (-1, words.MOST**2)),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), (1, words.MOST)),
    **dict.fromkeys(("gradient_accumulation_steps", "eval_accumulation_steps"), (1, words.MOST)),
    **dict.fromkeys(("dataloader_num_workers", "num_train_epochs", "learning_rate"), (0, words.MOST)),
    **dict.fromkeys(("weight_decay", "max_grad_norm", "adam_epsilon"), (0, words.MOST)),
    "label_smoothing_factor": (0, 1),
    **dict.fromkeys(("seed", "data_seed"), (0, words.LARGEST_SEED)),
}
_BELOW_ONE: Final = ("adam_beta1", "adam_beta2")
# Our own defaults where they differ from TrainingArguments: no NaN is left out of the means.
_DEFAULTS: Final = {
    "output_dir": "runs/train",
    "report_to": "none",
    "logging_steps": 10,
    "logging_nan_inf_filter": False,
}


def _option(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass
class ModelArguments:
    """Which model, and how it computes."""

    model: str = _option(words.DEFAULT_MODEL, f"{', '.join(words.BUILTIN_MODELS)}, a local folder, or a hub name.")
    task: str = _option(words.AUTO_TASK, f"auto (from the model's config), {', '.join(words.TASKS)}.")
    mode: str = _option(
        "pretrain",
        "pretrain (weights from the config), sft (weights from the checkpoint), or evaluate (no training; models of "
        "every task).",
    )
    attn_implementation: str = _option(
        AUTO,
        f"auto, {', '.join(MODES)}, or a hub kernel (ORG/REPO). On MPS, "
        "auto and sdpa become eager unless --disable_mps_fix.",
    )
    dtype: str = _option("float32", f"Dtype of the weights: {', '.join(words.DTYPES)}.")
    disable_mps_fix: bool = _option(False, "On MPS: use the standard Trainer, and leave SDPA as it is.")
    device: str = _option("auto", "auto (the first of mps, cuda, xpu, cpu), cpu, mps, cuda[:N] or xpu.")
    emulate: str | None = _option(
        None, "Use a CPU model of the MPS kernels of this torch release, 2.0 to 2.15. Emulated, not measured."
    )
    emulate_macos: int = _option(15, "macOS version to emulate: 13, 14, 15 or 26.")
    trust_remote_code: bool = _option(False, "Allow code that comes with the model to run.")
    json: bool = _option(False, "Print the summary as one JSON document on stdout, and nothing else.")


@dataclass
class DataArguments:
    """Which data to use, and how it becomes batches."""

    dataset: str = _option(
        "synthetic",
        "synthetic, a local .txt, .jsonl, .csv or .parquet file, a folder of .txt files or saved by datasets, or a hub "
        "name.",
    )
    dataset_config: str | None = _option(None, "Configuration of a hub dataset, such as wikitext-2-raw-v1.")
    eval_dataset: str | None = _option(None, "Evaluate on this instead of a validation split.")
    text_column: str | None = _option(None, "Column that holds the text, if it is not called text.")
    validation_fraction: float = _option(0.05, "Part of the training split to evaluate on if no other is given.")
    max_samples: int | None = _option(None, "Train on at most this many examples.")
    max_length: int = _option(512, "Longest example, in tokens.")
    padding_side: str = _option("left", "left or right.")
    pad_to_multiple_of: int | None = _option(None, "Pad every batch to a multiple of this many tokens.")
    use_packing: bool = _option(False, "Join the texts and cut them into pieces of --max_length: no padding.")
    eval_max_batches: int | None = _option(None, "Evaluate on at most this many batches.")
    stop_on_nonfinite: bool = _option(False, "Stop training at the first non-finite loss.")


@dataclass(frozen=True)
class RunArguments:
    """All settings of a run, checked."""

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    device: str
    emulation: Emulation | None
    resume: str | None


class _Parser(HfArgumentParser):
    """Raises a one-sentence error instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message[:1].upper()}{message[1:].rstrip('.')}. See mpsdiag train --help.")

    def format_help(self) -> str:
        """As it is kept in a file, so that asking for it loads nothing."""
        return render(self, {part.name for part in (*fields(ModelArguments), *fields(DataArguments))})


def make_parser() -> HfArgumentParser:
    """The parser; its help lists every option of `TrainingArguments` too."""
    ours: Any = (ModelArguments, DataArguments, TrainingArguments)
    parser = _Parser(
        ours,
        prog="mpsdiag train",
        description="Train or evaluate a causal language model, with the fix for NaN evaluation losses on MPS.",
        allow_abbrev=False,
    )
    parser.set_defaults(**_DEFAULTS)
    for action in (one for one in parser._actions if vars(one)["type"] is dict):  # noqa: SLF001
        action.type = str  # JSON or a file; typing may hand the parts of a Union on in another order
    return parser


def parse(arguments: Sequence[str]) -> RunArguments:
    """Parse and check a command line; raises BadInput, and SystemExit with code 0 for `--help`."""
    parser = make_parser()
    arguments = _in_new_words(arguments)
    namespace, unknown = parser.parse_known_args(with_latest(arguments))
    if unknown:
        word = next((word for word in unknown if word.startswith("-")), unknown[0])
        raise BadInput(f"Unknown argument '{word}'. {_suggestion(word, parser)}")
    given = vars(namespace)
    model, data = _take(ModelArguments, given), _take(DataArguments, given)
    one_of("mode", model.mode, RUN_MODES)
    one_of("task", model.task, (words.AUTO_TASK, *words.TASKS))
    if model.attn_implementation != AUTO:
        words.attention_mode(model.attn_implementation)
    one_of("dtype", model.dtype, words.DTYPES)
    one_of("padding side", data.padding_side, words.PADDING_SIDES)
    if not 0 < data.validation_fraction < 1:
        raise BadInput(f"--validation_fraction is {data.validation_fraction}; give a number between 0 and 1.")
    _check_values(given)
    if not (given.get("output_dir") or "").strip():
        raise BadInput("--output_dir is empty. Give a folder to write into, such as runs/train.")
    emulation = Emulation(model.emulate, model.emulate_macos) if model.emulate is not None else None
    if emulation is not None:
        emulation.require_dtype(model.dtype)
    elif any(word.replace("-", "_").partition("=")[0] == "__emulate_macos" for word in arguments):
        logger.warning("--emulate_macos has no effect without --emulate.")
    device = _device(model, emulation, use_cpu=bool(given.get("use_cpu")))
    given["use_cpu"] = device == "cpu"
    resume = given.pop("resume_from_checkpoint", None)
    if resume is not None and model.mode == "evaluate":
        raise BadInput("--resume_from_checkpoint continues training; to evaluate a checkpoint, give it as --model.")
    try:
        training = _take(TrainingArguments, given)
    except (ValueError, ImportError, RuntimeError, TypeError) as problem:
        raise BadInput(f"These training arguments cannot be combined: {first_line(problem)}.") from problem
    return RunArguments(model, data, training, device, emulation, resume)


def with_latest(arguments: Sequence[str]) -> list[str]:
    """A bare `--resume_from_checkpoint` means `latest`."""
    found: list[str] = []
    for word, following in zip(arguments, (*arguments[1:], "-"), strict=False):
        bare = word.replace("-", "_") == "__resume_from_checkpoint" and following.startswith("-")
        found += [word, LATEST] if bare else [word]
    return found


def _take(kind: type[Any], given: dict[str, Any]) -> Any:
    names = {part.name for part in fields(kind) if part.init}
    return kind(**{name: value for name, value in given.items() if name in names})


def _device(model: ModelArguments, emulation: Emulation | None, *, use_cpu: bool) -> str:
    """The device of the run; the Trainer uses the first accelerator unless `use_cpu` is set."""
    if emulation is not None:
        if model.device in {"auto", "cpu"}:
            return "cpu"
        raise BadInput(f"--emulate runs on the CPU, not on --device {model.device}. Leave one of them out.")
    device = "cpu" if use_cpu else devices.resolve(model.device)
    state = devices.usable(device)
    if not state.ok:
        raise BadInput(f"Device '{device}' cannot be used here: {state.reason}. Choose --device cpu.")
    return device


def _check_values(given: Mapping[str, Any]) -> None:
    """Refuse endless files, and numbers that make no sense in training, including NaN and infinity."""
    for value in given.values():  # values that name a file: --deepspeed, --accelerator_config, --fsdp_config
        if isinstance(value, str):
            require_file(Path(value))
    for name, (least, most) in _RANGES.items():
        value = given.get(name)
        if value is None or least <= value <= most:
            continue
        raise BadInput(f"--{name} is {value}; give a number from {least} to {most}.")
    for name in _BELOW_ONE:
        value = given.get(name)
        if value is not None and not 0 <= value < 1:
            raise BadInput(f"--{name} is {value}; give a number from 0 to less than 1.")


def _in_new_words(arguments: Sequence[str]) -> list[str]:
    """The arguments with old names of options replaced, and a note about each."""
    found: list[str] = []
    for word in arguments:
        name, equals, value = word.partition("=")
        new = _OLD_WORDS.get(name.removeprefix("--").replace("-", "_")) if name.startswith("--") else None
        if new is not None:
            logger.warning("%s is read as --%s; use that name.", name, new)
        found.append(word if new is None else f"--{new}{equals}{value}")
    return found


def _suggestion(word: str, parser: HfArgumentParser) -> str:
    """The option that was probably meant; transformers' `--no_x` is not suggested for other words."""
    actions = parser._actions  # noqa: SLF001 - there is no public list
    options = [option.lstrip("-") for action in actions for option in action.option_strings]
    given = word.partition("=")[0].lstrip("-").replace("-", "_")
    containing = (option for option in options if len(given) > 3 and given in option)
    close = close_to(given, options, cutoff=0.65) or next(containing, None)
    return f"Did you mean '--{close}'?" if close else "See mpsdiag train --help."


def choose_attention(asked: str, *, on_mps: bool, fix_disabled: bool) -> str:
    """Resolve `auto`, and replace `sdpa` by `eager` on MPS unless the fix is disabled."""
    if asked in {AUTO, "sdpa"}:
        return "eager" if on_mps and not fix_disabled else "sdpa"
    return asked


def require_available(mode: str, device: str, dtype: str, *, training: bool) -> None:
    """Refuse an attention mode that cannot run here, with the reason."""
    reason = mode_named(mode).unavailable(device, dtype, training=training)
    if reason is not None:
        raise BadInput(
            f"Attention '{mode}' cannot run here: {reason.rstrip('.')}. Choose another --attn_implementation."
        )
