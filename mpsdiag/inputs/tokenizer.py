"""Tokenizers: a byte-level one made on the spot, and those of a local folder or the hub."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mpsdiag.errors import BadInput, one_of
from mpsdiag.inputs.hub import offline_if_unreachable
from mpsdiag.inputs.load_problems import NO_TOKENIZER
from mpsdiag.inputs.sources import classify, explain_missing, is_builtin_model
from mpsdiag.words import PADDING_SIDES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

PAD_ID: Final = 0
BOS_ID: Final = 1
EOS_ID: Final = 2
SPECIAL_TOKENS: Final = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
BYTE_VOCABULARY: Final = 3 + 256
"""Token 3 + b stands for byte b of the UTF-8 text."""


def _byte_characters() -> list[str]:
    """The 256 printable characters that stand for the bytes 0 to 255 (byte-level BPE of GPT-2, Radford et al. 2019)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in set(printable) else chr(next(spare)) for byte in range(256)]


def byte_tokenizer(padding_side: str = "left") -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token a byte, and <pad>, <bos> (put before every text) and <eos>.

    Args:
        padding_side: `left` or `right`.

    Raises:
        BadInput: `padding_side` is neither.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    one_of("padding side", padding_side, PADDING_SIDES)
    specials = dict(zip(SPECIAL_TOKENS.values(), (PAD_ID, BOS_ID, EOS_ID), strict=True))
    vocabulary = {**specials, **{character: 3 + byte for byte, character in enumerate(_byte_characters())}}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS_ID)]
    )
    make: Any = PreTrainedTokenizerFast  # untyped
    return make(  # type: ignore[no-any-return]
        tokenizer_object=core,
        **SPECIAL_TOKENS,
        padding_side=padding_side,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(
    name: str, *, padding_side: str = "left", trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to a model; built-in models have the byte-level one.

    A tokenizer without a pad token is given its end-of-text token as one, and a warning says so.

    Args:
        name: A built-in model, a local folder, or a hub name.
        padding_side: `left` or `right`; it overrides what the checkpoint says.
        trust_remote_code: Let code that comes with the model run. Off unless the user asks for it.

    Raises:
        BadInput: The tokenizer cannot be loaded, is empty, or has no token that could pad.
    """
    if is_builtin_model(name):
        return byte_tokenizer(padding_side)
    from transformers import AutoTokenizer

    one_of("padding side", padding_side, PADDING_SIDES)
    try:
        with offline_if_unreachable() if classify("model", name) == "hub" else contextlib.nullcontext():
            tokenizer: Any = AutoTokenizer.from_pretrained(
                name, padding_side=padding_side, trust_remote_code=trust_remote_code
            )
    except Exception as problem:  # a damaged file fails in as many ways as there are libraries below
        from mpsdiag.inputs.model_config import load_config

        if (Path(name).expanduser() / "config.json").is_file():
            load_config(
                name, trust_remote_code=trust_remote_code
            )  # The reason may be there, and has its sentence.
        raise BadInput(explain_missing("tokenizer", name, problem)) from problem
    if _knows_no_text(tokenizer):
        raise BadInput(
            f"Cannot load the tokenizer from '{name}': {NO_TOKENIZER.reason}. {NO_TOKENIZER.advice}"
        )
    give_pad_token(tokenizer, name)
    return tokenizer  # type: ignore[no-any-return]  # AutoTokenizer is untyped


def _knows_no_text(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether it has special tokens only: of a folder without one transformers makes an empty tokenizer."""
    try:
        vocabulary = tokenizer.get_vocab()
    except NotImplementedError:
        return False
    return set(vocabulary) <= set(tokenizer.all_special_tokens)


def give_pad_token(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Choose a pad token where the tokenizer has none, and say which.

    The chosen token stays in the vocabulary it came from, so no embedding is added. Labels are masked by the attention
    mask, never by the token, so a true end-of-text token keeps its label.

    Raises:
        BadInput: It has neither an end-of-text nor an unknown token to pad with.
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
