"""The words of the contract: names of axes, statuses and verdicts. They are stable and defined only here."""

import re
from collections.abc import Iterable
from typing import Final, Literal, get_args

from mpsdiag.errors import one_of

ProbeStatus = Literal["pass", "fail", "skip", "error"]
CellStatus = Literal["ok", "nan", "wrong", "error", "crash", "oom", "timeout", "interrupted", "skip"]
Verdict = Literal["affected", "not_affected", "undecided"]
AttentionMode = Literal[
    "sdpa", "eager", "safe_sdpa", "unmask_sdpa", "min_mask_sdpa", "flex_attention", "flash_attention_2"
]
TrainerVariant = Literal["standard", "mps_safe", "cpu_loss", "cpu_forward", "grad_eval"]
PaddingSide = Literal["left", "right"]
TaskName = Literal[
    "text-generation",
    "fill-mask",
    "text-classification",
    "token-classification",
    "feature-extraction",
    "text2text-generation",
    "image-text-to-text",
]
TaskChoice = Literal["auto", TaskName]
DtypeName = Literal["float32", "bfloat16", "float16", "float64"]

CELL_STATUSES: Final[tuple[str, ...]] = get_args(CellStatus)
ATTENTION_MODES: Final[tuple[str, ...]] = get_args(AttentionMode)
TRAINER_VARIANTS: Final[tuple[str, ...]] = get_args(TrainerVariant)
_KERNEL: Final = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w.-]+)?(:\w+)?", re.ASCII)
POSITIONS: Final = "positions"
"""The fix that is not an attention mode: position ids made from the attention mask."""
PADDING_SIDES: Final[tuple[str, ...]] = get_args(PaddingSide)
TASKS: Final[tuple[str, ...]] = get_args(TaskName)
AUTO_TASK: Final = "auto"
DTYPES: Final[tuple[str, ...]] = get_args(DtypeName)

DEFAULT_MODEL: Final = "tiny-llama"
"""Its numbers do not depend on padding, so nothing is found on a machine without defects."""
BUILTIN_DECODERS: Final[tuple[str, ...]] = ("tiny-gpt2", "tiny-llama", "tiny-mistral", "tiny-qwen2")
"""The causal language models among the built-in ones."""
BUILTIN_MODELS: Final[tuple[str, ...]] = (
    *BUILTIN_DECODERS,
    "tiny-bert",
    "tiny-bart",
    "tiny-t5",
    "tiny-embedder",
    "tiny-vlm",
)
BUILTIN_DATASET: Final = "synthetic"

LARGEST_SEED: Final = 2**32 - 1  # the limit of NumPy; torch and Python accept more
MOST: Final = 1_000_000
"""Upper limit of every other number: larger than anyone needs, so that a typo is refused at once."""

# Process exit codes that mean the same in every command; 1 is the command's own finding.
EXIT_OK: Final = 0
EXIT_FOUND: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNDECIDED: Final = 3
EXIT_INTERRUPTED: Final = 130


def is_kernel(attention: str) -> bool:
    """Whether an attention mode is a hub kernel: `organization/repository`, optionally `@revision` and `:function`."""
    return _KERNEL.fullmatch(attention) is not None


def attention_mode(name: str) -> str:
    """Return the name of an attention mode, one of ours or a kernel of the hub; raises BadInput for any other."""
    return name if is_kernel(name) else one_of("attention mode", name, ATTENTION_MODES)


def attention_modes(names: Iterable[str]) -> list[str]:
    """The attention modes among some names, each once: ours in their order, then hub kernels."""
    found = set(names)
    return [*(mode for mode in ATTENTION_MODES if mode in found), *sorted(filter(is_kernel, found))]


def count(number: int, noun: str) -> str:
    """Write a number with its noun: `1 cell`, `2,000 cells`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
