"""The tokenizer of a model: for a built-in one, from a local folder, or from the hub."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpsdiag.errors import BadInput, one_of
from mpsdiag.inputs.builtin import byte_tokenizer
from mpsdiag.inputs.load_problems import NO_TOKENIZER, described
from mpsdiag.inputs.models import load_config
from mpsdiag.inputs.names import explain_missing, is_builtin_model, offline_if_unreachable, transformer_folder
from mpsdiag.inputs.tasks import Task
from mpsdiag.quiet import held_back
from mpsdiag.words import PADDING_SIDES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def load_tokenizer(
    name: str, *, padding_side: str = "left", trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; built-in models have the byte-level one.

    A tokenizer without a pad token pads with its end-of-text token, and a warning says so. Raises BadInput if the
    tokenizer cannot be loaded, is empty, or has no token to pad with.
    """
    if is_builtin_model(name):
        return byte_tokenizer(padding_side)
    from transformers import AutoTokenizer

    one_of("padding side", padding_side, PADDING_SIDES)
    try:
        with offline_if_unreachable("model", name):
            tokenizer: Any = AutoTokenizer.from_pretrained(
                name, padding_side=padding_side, trust_remote_code=trust_remote_code
            )
    except BadInput:
        raise
    except Exception as problem:  # a damaged file fails in as many ways as there are libraries below
        if (Path(name).expanduser() / "config.json").is_file():
            # The reason may be there, and has its sentence.
            load_config(name, trust_remote_code=trust_remote_code)
        raise BadInput(explain_missing("tokenizer", name, problem)) from problem
    if _knows_no_text(tokenizer):
        raise BadInput(f"Cannot load the tokenizer from '{name}': {NO_TOKENIZER.reason}. {NO_TOKENIZER.advice}")
    give_pad_token(tokenizer, name)
    return tokenizer  # type: ignore[no-any-return]  # AutoTokenizer is untyped


def load_processor(name: str, task: Task, *, padding_side: str = "left", trust_remote_code: bool = False) -> Any:
    """Load the tokenizer or, for an image-text model, the processor of a model.

    Raises BadInput as `load_tokenizer` does, or if an image-text model has no processor.
    """
    folder = transformer_folder(name)
    if task.name != "image-text-to-text" or is_builtin_model(name):
        return load_tokenizer(folder, padding_side=padding_side, trust_remote_code=trust_remote_code)
    from transformers import AutoProcessor

    tokenizer = load_tokenizer(folder, padding_side=padding_side, trust_remote_code=trust_remote_code)
    missing = "save the one it was trained with beside the model: processor.save_pretrained(folder)"
    loader: Any = AutoProcessor
    try:
        with held_back("transformers"):
            processor: Any = loader.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except BadInput:
        raise
    except Exception as problem:  # as above
        raise BadInput(
            f"Cannot load the processor of '{name}', which handles its pictures ({described(problem)}): {missing}."
        ) from problem
    if not hasattr(processor, "image_processor"):
        raise BadInput(f"'{name}' has a tokenizer but no processor for its pictures: {missing}.")
    processor.tokenizer = tokenizer
    return processor


def _knows_no_text(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it has only special tokens: for a folder without a tokenizer transformers makes an empty one."""
    try:
        vocabulary = tokenizer.get_vocab()
    except NotImplementedError:
        return False
    return set(vocabulary) <= set(tokenizer.all_special_tokens)


def give_pad_token(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Choose a pad token if the tokenizer has none, and log which.

    The chosen token is already in the vocabulary, so no embedding is added. Labels are masked by the attention
    mask, never by the token, so a true end-of-text token keeps its label. Raises BadInput if it has neither an
    end-of-text nor an unknown token to pad with.
    """
    if tokenizer.pad_token_id is not None:
        return
    choice = tokenizer.eos_token or tokenizer.unk_token
    if choice is None:
        raise BadInput(
            f"The tokenizer of '{name}' has no pad token and no end-of-text token to use as one. "
            "Add a pad_token to its tokenizer_config.json."
        )
    tokenizer.pad_token = choice
    logger.warning("The tokenizer of '%s' has no pad token; padding with its '%s' token.", name, choice)
