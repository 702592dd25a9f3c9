"""Where a traced case comes from: a model with data or a saved batch, a recorded folder; checkpoints of its weights."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpsdiag import device as devices
from mpsdiag import words
from mpsdiag.emulation.selection import Emulation
from mpsdiag.errors import BadInput, CannotDecide, one_of
from mpsdiag.fixes.model import put_in_place
from mpsdiag.inputs.installed import as_on_mps
from mpsdiag.inputs.models import attention_for, build_model, fitting_length, load_task
from mpsdiag.tracing.cases.recorded_case import About, load_batch, read_case
from mpsdiag.tracing.passes.model_inputs import prepare_batch


@dataclass(frozen=True)
class TraceRequest:
    """What to trace, named as on the command line. None means the default of the case.

    `folder` is a recorded case, `batch_file` a batch in a safetensors file; `steps` counts training steps, `batches`
    evaluation batches; `checkpoints` are searched for the first one with bad weights.
    """

    folder: Path | None = None
    batch_file: Path | None = None
    model: str | None = None
    task: str = words.AUTO_TASK
    dataset: str = words.BUILTIN_DATASET
    train: bool = False
    steps: int | None = None
    learning_rate: float | None = None
    device: str | None = None
    dtype: str | None = None
    attention: str | None = None
    padding_side: str = "left"
    max_length: int | None = None
    batch_size: int = 4
    batches: int = 4
    pad_to_multiple_of: int | None = None
    seed: int = 0
    compare: bool | None = None
    emulate: str | None = None
    emulate_macos: int = 15
    checkpoints: tuple[Path, ...] = ()


@dataclass
class TracedCase:
    """A case, ready to run: model and batches on the device, and facts for the report."""

    model: nn.Module
    batches: list[dict[str, Any]]
    device: str
    emulation: Emulation | None
    train: bool
    grad: bool
    learning_rate: float | None
    case_info: dict[str, Any] = field(default_factory=dict)


@contextmanager
def load_case(request: TraceRequest, progress: Callable[[str], None]) -> Iterator[TracedCase]:
    """Load the case to trace; inside the block its attention, emulation and autocast are in effect."""
    one_of("padding side", request.padding_side, words.PADDING_SIDES)
    if request.attention is not None:
        words.attention_mode(request.attention)
    one_of("task", request.task, (words.AUTO_TASK, *words.TASKS))
    about, batch, weights = (None, None, None) if request.folder is None else read_case(request.folder)
    if request.folder is not None and request.batch_file is not None:
        raise BadInput("A recorded folder has its own batch: give the folder or --batch, not both.")
    if request.batch_file is not None:
        batch = load_batch(request.batch_file)
    if about is not None and weights is None and request.model is None:
        raise BadInput(f"{request.folder} was recorded without weights. Give the model that was recorded: --model.")
    name = request.model or str(weights or words.DEFAULT_MODEL)
    attention = request.attention or (about.attention if about else None)
    emulation = _emulation(request, about)
    device = "cpu" if emulation else devices.resolve(request.device or "auto")
    dtype = request.dtype or (about.dtype if about else "float32")
    _require(device, dtype, emulation)
    progress("loading the model")
    with ExitStack() as stack:
        devices.seed_everything(request.seed)
        task, seed = request.task, request.seed
        model: nn.Module = build_model(name, seed=seed, dtype=dtype, from_config=False, task=task)
        model.to(device)
        # A recorded attention may be a hub kernel, which is loaded only on request.
        if attention is not None and (attention in words.ATTENTION_MODES or attention == request.attention):
            stack.enter_context(put_in_place(model, attention_for(model, attention)))
        stack.enter_context(as_on_mps(emulation))
        if about is not None and about.autocast and request.dtype is None:
            kind = devices.kind_of(device)
            stack.enter_context(torch.autocast(kind, dtype=devices.torch_dtype(about.autocast)))
        longest = fitting_length(
            model, request.max_length or (128 if request.dataset == words.BUILTIN_DATASET else 512)
        )
        given = _batches(request, name, model, longest) if batch is None else [batch]
        yield TracedCase(
            model=model,
            batches=[prepare_batch(model, one) for one in given],
            device=device,
            emulation=emulation,
            train=request.train or (about is not None and about.phase == "training"),
            grad=about is not None and about.grad,
            learning_rate=request.learning_rate or (about.learning_rate if about else None),
            case_info=_case_info(request, about, name, dtype, attention, len(given))
            | ({"max_length": longest} if batch is None else {}),
        )


def _batches(request: TraceRequest, name: str, model: Any, longest: int) -> list[dict[str, Any]]:
    """The first texts of the data, tokenized, padded and labelled for the task of the model."""
    from mpsdiag.inputs.texts import load_texts
    from mpsdiag.inputs.tokenizer import load_processor

    task, _ = load_task(name, request.task)
    processor = load_processor(name, task, padding_side=request.padding_side)
    texts = load_texts(request.dataset, limit=request.batches * request.batch_size)
    rows = task.rows(texts, processor, longest, config=model.config, seed=request.seed)
    collate = task.collator(processor, model, pad_to_multiple_of=request.pad_to_multiple_of)
    size = request.batch_size
    batches = [collate(rows[start : start + size]) for start in range(0, len(rows), size)]
    if task.loss is not None:  # The labels are for a loss outside of the model.
        for batch in batches:
            del batch["labels"]
    return batches


def _emulation(request: TraceRequest, about: About | None) -> Emulation | None:
    if request.emulate is not None:
        if request.device not in (None, "auto", "cpu"):
            raise BadInput(f"--emulate runs on the CPU, not on '{request.device}'. Leave out --device, or --emulate.")
        return Emulation(request.emulate, request.emulate_macos)
    return about.emulation if about is not None and request.device is None else None


def _require(device: str, dtype: str, emulation: Emulation | None) -> None:
    devices.torch_dtype(dtype)
    if emulation is not None:
        emulation.require_dtype(dtype)
    devices.require_usable(device)
    reason = devices.supports_dtype(device, dtype)
    if reason:
        raise CannotDecide(f"{reason}. Choose another --dtype.")


def _case_info(
    request: TraceRequest, about: About | None, model: str, dtype: str, attention: str | None, batches: int
) -> dict[str, Any]:
    info: dict[str, Any] = {"model": model, "dtype": dtype, "batches": batches}
    if request.folder is not None and about is not None:
        info |= {"recorded": str(request.folder), "recorded_on": about.device, "recorded_step": about.step}
        info["recorded_versions"] = about.versions
        if request.model is None:
            info["model"] = f"the weights recorded in {request.folder}"
    elif request.batch_file is not None:
        info["batch"] = str(request.batch_file)
    else:
        info |= {"dataset": request.dataset, "padding_side": request.padding_side}
    if attention:
        info["attention"] = attention
    return info


_NUMBER = re.compile(r"(\d+)$")


def find_checkpoints(paths: Sequence[Path]) -> list[Path]:
    """Folders with safetensors weights, the oldest first; a folder that contains `checkpoint-N` stands for these."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise BadInput(
                f"There is no folder {path}. Give checkpoints, or the folder into which a Trainer wrote them."
            )
        inner = sorted((folder for folder in path.iterdir() if folder.is_dir() and _weights(folder)), key=_step)
        here = [path] if _weights(path) else []
        if not inner and not here:
            pickled = any(path.rglob("*.bin")) or any(path.rglob("*.pt"))
            why = " Its weights are pickles, which are refused: loading them can run code." if pickled else ""
            raise BadInput(f"{path} holds no checkpoint with safetensors weights.{why}")
        found += [*inner, *here]
    return found


def bad_since(checkpoints: Sequence[Path], names: Sequence[str]) -> dict[str, Any]:
    """The first checkpoint with a non-finite tensor among these (None: all are finite), and the last one before it."""
    found: dict[str, Any] = {"bad_since": None, "last_finite": None, "tensor": None}
    found["checkpoints"] = len(checkpoints)
    for folder in checkpoints:
        bad = _first_bad(folder, set(names))
        if bad is not None:
            return {**found, "bad_since": folder.name, "tensor": bad}
        found["last_finite"] = folder.name
    return found


def _first_bad(folder: Path, names: set[str]) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        for path in _weights(folder):
            with safe_open(path, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 - no mapping
                    if names and name not in names:
                        continue
                    tensor = stored.get_tensor(name)
                    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                        return str(name)
    except (SafetensorError, OSError) as problem:
        raise BadInput(f"The checkpoint {folder} cannot be read: {problem}.") from problem
    return None


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _step(folder: Path) -> tuple[int, str]:
    found = _NUMBER.search(folder.name)
    return (int(found[1]) if found else 0), folder.name
