"""What is wrong with a model or tokenizer that a library could not load, and what to do: true of this one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

_TOKENIZER_FILES: Final = ("*token*", "*vocab*", "merges.txt", "*.model", "*.tiktoken")
_SAVED: Final = "Give a folder that save_pretrained wrote."
# Their messages are sentences; of other exceptions the name belongs to what is said.
_SPEAKING: Final = (OSError, ValueError, ImportError)
_MEMORY: Final = re.compile(r"allocate memory|out of memory", re.IGNORECASE)
_NO_SAFETENSORS: Final = re.compile(
    r"no file named|does not appear to have a file named|safetensors was found"
)


class Told(NamedTuple):
    """The reason, as part of a sentence, and what to do, as a sentence of its own."""

    reason: str
    advice: str


class _Problem(NamedTuple):
    what: str
    folder: Path | None
    text: str
    error: BaseException


def known_problem(what: str, name: str, problem: BaseException) -> Told | None:
    """Tell what is wrong, where it shows in the folder or in what the library said.

    Args:
        what: `model` or `tokenizer`.
        name: What the user gave.
        problem: The exception of the library.
    """
    folder = Path(name).expanduser()
    given = _Problem(what, folder if folder.is_dir() else None, str(problem), problem)
    return next((told for rule in _RULES if (told := rule(given)) is not None), None)


def described(problem: BaseException, longest: int = 200) -> str:
    """What an exception says in one line, with its name where the text alone means little."""
    text = " ".join(str(problem).split())[:longest].rstrip(".: ")
    if not text:
        return type(problem).__name__
    return text if isinstance(problem, _SPEAKING) else f"{type(problem).__name__}: {text}"


def _memory(given: _Problem) -> Told | None:
    if isinstance(given.error, MemoryError) or _MEMORY.search(given.text):
        return Told(
            "there is not enough memory for it", "Check the sizes in its config.json, or free memory."
        )
    return None


def _own_code(given: _Problem) -> Told | None:
    if "trust_remote_code" not in given.text:
        return None
    return Told(
        "it comes with code of its own, which runs only if you ask for it",
        "mpsdiag train does with --trust_remote_code; check and trace run no such code.",
    )


def _no_language_model(given: _Problem) -> Told | None:
    found = re.search(r"Unrecognized configuration class <class '[\w.]*?(\w+)'>", given.text)
    if given.what != "model" or found is None:
        return None
    return Told(
        f"{found[1].removesuffix('Config')} is no causal language model",
        "Give one that predicts the next token, such as a GPT-2 or a Llama.",
    )


def _no_config(given: _Problem) -> Told | None:
    if given.folder is None or given.what != "model":
        return None
    file = given.folder / "config.json"
    if not file.is_file():
        return Told("it has no config.json", _SAVED)
    again = "Put back the config.json that save_pretrained wrote."
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError:
        return Told("its config.json is not JSON", again)
    if not isinstance(found, dict):
        return Told("its config.json is not a JSON object", again)
    return None if found.get("model_type") else Told("its config.json names no model_type", again)


def _unknown_type(given: _Problem) -> Told | None:
    found = re.search(r"model type `([^`]*)`", given.text)
    if found is None:
        return None
    return Told(
        f"this release of transformers does not know the model type '{found[1]}'",
        "Check model_type in its config.json, or upgrade transformers.",
    )


def _no_safetensors(given: _Problem) -> Told | None:
    if given.what != "model" or not isinstance(given.error, OSError) or "safetensors" not in given.text:
        return None
    if given.folder is None:
        pickled = _NO_SAFETENSORS.search(given.text) is not None
    elif any(given.folder.glob("*.safetensors")):
        return None
    else:
        pickled = any(given.folder.glob("*.bin"))
        if not pickled:
            return Told("it has no weights (model.safetensors)", _SAVED)
    if not pickled:
        return None
    return Told(
        "it has no safetensors weights, and loading a pickle can run any code in it, so .bin files are refused",
        "Convert them where you trust them: model.save_pretrained(folder) writes safetensors.",
    )


def _torn(given: _Problem) -> Told | None:
    # By its name: safetensors need not be imported for this.
    if type(given.error).__name__ != "SafetensorError":
        return None
    return Told(
        f"its safetensors weights are damaged or cut short ({described(given.error)})",
        "Copy them again, or save the model again.",
    )


def _other_sizes(given: _Problem) -> Told | None:
    if "ignore_mismatched_sizes" not in given.text and "size mismatch" not in given.text:
        return None
    return Told(
        "its weights have other sizes than its config.json says",
        "Put back the config.json that was saved with them, or save the model again.",
    )


def _no_tokenizer(given: _Problem) -> Told | None:
    if given.what != "tokenizer" or given.folder is None:
        return None
    if any(found for pattern in _TOKENIZER_FILES for found in given.folder.glob(pattern)):
        return None
    return NO_TOKENIZER


def _damaged(given: _Problem) -> Told | None:
    if given.folder is None or isinstance(given.error, ImportError):
        return None
    if given.what == "tokenizer":
        return Told(
            f"its files cannot be used ({described(given.error)})",
            "Save it there again with tokenizer.save_pretrained.",
        )
    return Told(
        described(given.error),
        "Its config.json or its weights are damaged: save the model again with save_pretrained.",
    )


NO_TOKENIZER: Final = Told(
    "it has none", "Save the one it was trained with beside the model: tokenizer.save_pretrained(folder)."
)
_RULES: Final[tuple[Callable[[_Problem], Told | None], ...]] = (
    _memory,
    _own_code,
    _no_language_model,
    _no_config,
    _unknown_type,
    _no_safetensors,
    _torn,
    _other_sizes,
    _no_tokenizer,
    _damaged,
)
"""The first that applies; the last one always does for a folder."""
