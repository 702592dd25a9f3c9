"""Why a library could not load a model or tokenizer, and what to do about this particular one."""

import itertools
import json
import re
from collections.abc import Iterator
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
    """The reason, as part of a sentence, and what to do, as a separate sentence."""

    reason: str
    advice: str


def known_problem(what: str, name: str, problem: BaseException) -> Problem | None:
    """The problem of a `model` or `tokenizer`, if its folder or the library's exception shows it."""
    folder = Path(name).expanduser()
    there = folder if folder.is_dir() else None
    rules = (_by_the_exception(what, problem), _by_the_files(what, there, problem), _damaged(what, there, problem))
    return next(itertools.chain.from_iterable(rules), None)


def described(problem: BaseException, longest: int = 200) -> str:
    """An exception in one line, with its name if the text alone means little."""
    text = " ".join(str(problem).split())[:longest].rstrip(".: ")
    if not text:
        return type(problem).__name__
    return text if isinstance(problem, _SPEAKING) else f"{type(problem).__name__}: {text}"


def _by_the_exception(what: str, error: BaseException) -> Iterator[Problem]:
    """Problems that the library's exception identifies."""
    text = str(error)
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        yield Problem("there is not enough memory for it", "Check the sizes in its config.json, or free memory.")
    if "trust_remote_code" in text:
        yield Problem(
            "it comes with its own code, which runs only if you allow it",
            "mpsdiag train allows it with --trust_remote_code; check and trace never run such code.",
        )
    other = re.search(r"Unrecognized configuration class <class '[\w.]*?(\w+)'>", text)
    if other is not None and what == "model":
        yield Problem(
            f"{other[1].removesuffix('Config')} is not a causal language model",
            "Give one that predicts the next token, such as a GPT-2 or a Llama.",
        )
    if unknown := re.search(r"model type `([^`]*)`", text):
        yield Problem(
            f"this release of transformers does not know the model type '{unknown[1]}'",
            "Check model_type in its config.json, or upgrade transformers.",
        )
    if type(error).__name__ == "SafetensorError":  # By its name: safetensors need not be imported for this.
        yield Problem(
            f"its safetensors weights are damaged or cut short ({described(error)})",
            "Copy them again, or save the model again.",
        )
    if "ignore_mismatched_sizes" in text or "size mismatch" in text:
        yield Problem(
            "the sizes of its weights differ from its config.json",
            "Put back the config.json that was saved with them, or save the model again.",
        )


def _by_the_files(what: str, folder: Path | None, error: BaseException) -> Iterator[Problem]:
    """Files that are missing or wrong in the folder, or on the hub."""
    if what == "tokenizer":
        if folder is not None and not any(any(folder.glob(name)) for name in _TOKENIZER_FILES):
            yield NO_TOKENIZER
        return
    if folder is not None:
        yield from _of_config(folder / "config.json")
    text = str(error)
    if isinstance(error, OSError) and "safetensors" in text and not (folder and any(folder.glob("*.safetensors"))):
        if any(folder.glob("*.bin")) if folder else _NO_SAFETENSORS.search(text):
            yield Problem(
                "it has no safetensors weights, and loading a pickle can run any code in it, so .bin files are refused",
                "If you trust them, convert them: model.save_pretrained(folder) writes safetensors.",
            )
        elif folder:
            yield Problem("it has no weights (model.safetensors)", _SAVED)


def _of_config(file: Path) -> Iterator[Problem]:
    """What is wrong with a config.json."""
    if not file.is_file():
        yield Problem("it has no config.json", _SAVED)
        return
    reason = ""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            reason = "is not a JSON object"
        elif not found.get("model_type"):
            reason = "names no model_type"
    except OSError:
        return
    except ValueError:
        reason = "is not JSON"
    if reason:
        yield Problem(f"its config.json {reason}", "Put back the config.json that save_pretrained wrote.")


def _damaged(what: str, folder: Path | None, error: BaseException) -> Iterator[Problem]:
    """What remains for a folder that has the files it needs."""
    whole = folder is not None and (folder / "tokenizer.json").is_file()
    if folder is None or (isinstance(error, ImportError) and not whole):
        return  # Of a whole one transformers up to 4.57 asks for what converts others, where it is damaged.
    if what == "tokenizer":
        yield Problem(
            f"its files cannot be used ({described(error)})", "Save it there again with tokenizer.save_pretrained."
        )
    else:
        yield Problem(
            described(error), "Its config.json or its weights are damaged: save the model again with save_pretrained."
        )


NO_TOKENIZER: Final = Problem(
    "there is none", "Save the one it was trained with beside the model: tokenizer.save_pretrained(folder)."
)


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
