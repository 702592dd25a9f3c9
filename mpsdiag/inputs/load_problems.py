"""Why a library could not load a model or tokenizer, and what to do about this particular one."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from mpsdiag.errors import BadInput

_TOKENIZER_FILES: Final = ("*tokenizer*", "*vocab*", "merges.txt", "*.model", "*.tiktoken")
_WIDTHS: Final = ("hidden_size", "n_embd", "d_model")
_SIZE: Final = re.compile(
    r"(num_)?((hidden|encoder|decoder)_)?layers|n_layer|hidden_size|n_embd|d_model|intermediate_size|vocab_size"
    r"|max_position_embeddings|n_positions|head_dim|(num_attention|num_key_value|n)_heads?"
)
_MOST_LAYERS: Final = 10_000
_MOST_SIZE: Final = 100_000_000
_SAVED: Final = "Give a folder that save_pretrained wrote."
# The messages of these are sentences; those of other exceptions mean little without the name of the exception.
_SPEAKING: Final = (OSError, ValueError, ImportError)
_MEMORY: Final = re.compile(r"allocate memory|out of memory", re.IGNORECASE)
_NO_SAFETENSORS: Final = re.compile(r"no file named|does not appear to have a file named|safetensors was found")


class Problem(NamedTuple):
    """The reason, as part of a sentence, and what to do, as a sentence of its own."""

    reason: str
    advice: str


class _Failure(NamedTuple):
    what: str
    folder: Path | None
    text: str
    error: BaseException


def known_problem(what: str, name: str, problem: BaseException) -> Problem | None:
    """The problem of a `model` or `tokenizer`, if its folder or the library's exception shows it."""
    folder = Path(name).expanduser()
    given = _Failure(what, folder if folder.is_dir() else None, str(problem), problem)
    return next((found for rule in _RULES if (found := rule(given)) is not None), None)


def described(problem: BaseException, longest: int = 200) -> str:
    """An exception in one line, with its name if the text alone means little."""
    text = " ".join(str(problem).split())[:longest].rstrip(".: ")
    if not text:
        return type(problem).__name__
    return text if isinstance(problem, _SPEAKING) else f"{type(problem).__name__}: {text}"


def _memory(given: _Failure) -> Problem | None:
    if not isinstance(given.error, MemoryError) and not _MEMORY.search(given.text):
        return None
    return Problem("there is not enough memory for it", "Check the sizes in its config.json, or free memory.")


def _in_the_message(given: _Failure) -> Problem | None:
    """Problems that the library's own message identifies."""
    if "trust_remote_code" in given.text:
        return Problem(
            "it comes with its own code, which runs only if you allow it",
            "mpsdiag train allows it with --trust_remote_code; check and trace never run such code.",
        )
    other = re.search(r"Unrecognized configuration class <class '[\w.]*?(\w+)'>", given.text)
    if other is not None and given.what == "model":
        return Problem(
            f"{other[1].removesuffix('Config')} is not a causal language model",
            "Give one that predicts the next token, such as a GPT-2 or a Llama.",
        )
    return None


def _no_config(given: _Failure) -> Problem | None:
    if given.folder is None or given.what != "model":
        return None
    file = given.folder / "config.json"
    if not file.is_file():
        return Problem("it has no config.json", _SAVED)
    again = "Put back the config.json that save_pretrained wrote."
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError:
        return Problem("its config.json is not JSON", again)
    if not isinstance(found, dict):
        return Problem("its config.json is not a JSON object", again)
    return None if found.get("model_type") else Problem("its config.json names no model_type", again)


def _unknown_type(given: _Failure) -> Problem | None:
    found = re.search(r"model type `([^`]*)`", given.text)
    return found and Problem(
        f"this release of transformers does not know the model type '{found[1]}'",
        "Check model_type in its config.json, or upgrade transformers.",
    )


def _no_safetensors(given: _Failure) -> Problem | None:
    if given.what != "model" or not isinstance(given.error, OSError) or "safetensors" not in given.text:
        return None
    if given.folder is None:
        pickled = _NO_SAFETENSORS.search(given.text) is not None
    elif any(given.folder.glob("*.safetensors")):
        return None
    else:
        pickled = any(given.folder.glob("*.bin"))
        if not pickled:
            return Problem("it has no weights (model.safetensors)", _SAVED)
    return (
        Problem(
            "it has no safetensors weights, and loading a pickle can run any code in it, so .bin files are refused",
            "If you trust them, convert them: model.save_pretrained(folder) writes safetensors.",
        )
        if pickled
        else None
    )


def _damaged_weights(given: _Failure) -> Problem | None:
    if type(given.error).__name__ == "SafetensorError":  # By its name: safetensors need not be imported for this.
        return Problem(
            f"its safetensors weights are damaged or cut short ({described(given.error)})",
            "Copy them again, or save the model again.",
        )
    if "ignore_mismatched_sizes" in given.text or "size mismatch" in given.text:
        return Problem(
            "the sizes of its weights differ from its config.json",
            "Put back the config.json that was saved with them, or save the model again.",
        )
    return None


def _no_tokenizer(given: _Failure) -> Problem | None:
    if given.what != "tokenizer" or given.folder is None:
        return None
    return None if any(any(given.folder.glob(name)) for name in _TOKENIZER_FILES) else NO_TOKENIZER


def _damaged(given: _Failure) -> Problem | None:
    whole = given.folder is not None and (given.folder / "tokenizer.json").is_file()
    if given.folder is None or (isinstance(given.error, ImportError) and not whole):
        return None  # Of a whole one transformers up to 4.57 asks for what converts others, where it is damaged.
    if given.what == "tokenizer":
        return Problem(
            f"its files cannot be used ({described(given.error)})",
            "Save it there again with tokenizer.save_pretrained.",
        )
    return Problem(
        described(given.error), "Its config.json or its weights are damaged: save the model again with save_pretrained."
    )


NO_TOKENIZER: Final = Problem(
    "there is none", "Save the one it was trained with beside the model: tokenizer.save_pretrained(folder)."
)
_RULES: Final[tuple[Callable[[_Failure], Problem | None], ...]] = (
    _memory,
    _in_the_message,
    _no_config,
    _unknown_type,
    _no_safetensors,
    _damaged_weights,
    _no_tokenizer,
    _damaged,
)
"""Checked in this order; for a folder the last one always applies."""


def require_sizes(config: Any, name: str) -> None:
    """Refuse sizes that no machine can hold, before any layer is built.

    Raises BadInput for a size that is negative or absurd, or for layers that need more than the memory.
    """
    import psutil

    values = config.to_dict()
    for part in (values, *(one for one in values.values() if isinstance(one, dict))):
        sizes = {
            key: value for key, value in part.items() if _SIZE.fullmatch(str(key)) and isinstance(value, int | float)
        }
        for key, value in sizes.items():
            most = _MOST_LAYERS if key.endswith(("layers", "layer")) else _MOST_SIZE
            if not 0 <= value <= most:
                raise BadInput(
                    f"Cannot load the model from '{name}': {key} is {value} in its config.json, but a model can have 0 "
                    f"to {most:,}. Put back the config.json that save_pretrained wrote."
                )
        width = max((value for key, value in sizes.items() if key in _WIDTHS), default=0)
        layers = max((value for key, value in sizes.items() if key.endswith(("layers", "layer"))), default=0)
        if 4 * width**2 * layers > psutil.virtual_memory().total:
            raise BadInput(
                f"Cannot load the model from '{name}': {layers} layers of width {width} do not fit into this machine's "
                "memory. Check the sizes in its config.json."
            )
