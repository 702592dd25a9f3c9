"""The built-in models and their tokenizer: small configs, seeded random weights, one token per byte; no downloads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from mpsdiag.errors import one_of
from mpsdiag.words import PADDING_SIDES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD_ID: Final = 0
BOS_ID: Final = 1
EOS_ID: Final = 2
SPECIAL_TOKENS: Final = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
BYTE_VOCABULARY: Final = 3 + 256
"""Token 3 + b stands for byte b of the UTF-8 text."""

HIDDEN: Final = 64
LAYERS: Final = 2
HEADS: Final = 4
SLIDING_WINDOW: Final = 16
MAX_POSITIONS: Final = 4096
PICTURE: Final = 8
"""Width and height, in pixels, of the pictures for tiny-vlm."""
PICTURE_TOKENS: Final = 4
"""How many tokens stand for a picture; their id is the one after the vocabulary."""


def builtin_config(name: str, *, vocab_size: int | None = None, max_positions: int = MAX_POSITIONS) -> Any:
    """The config of a built-in model: 2 layers (of each kind), hidden size 64, 4 heads, no dropout, byte vocabulary.

    Raises BadInput for an unknown name.
    """
    one_of("built-in model", name, BUILTIN_CONFIGS)
    shared = {
        "vocab_size": vocab_size or BYTE_VOCABULARY,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
    }
    config = BUILTIN_CONFIGS[name](shared, max_positions)
    config.architectures = [_ARCHITECTURES[name]] if name in _ARCHITECTURES else None
    return config


_Maker = Callable[[dict[str, Any], int], Any]
"""Makes a config from the ids and sizes that all share, and the longest sequence."""


def _config(kind: str, **values: Any) -> Any:
    import transformers

    return getattr(transformers, kind)(**values)


def _gpt2(shared: dict[str, Any], positions: int) -> Any:
    return _config(
        "GPT2Config",
        **shared,
        n_positions=positions,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        # With dropout, training would depend on which attention ran, and the SDPA fast path would not be taken.
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


def _sized(shared: dict[str, Any], positions: int) -> dict[str, Any]:
    return {
        **shared,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": positions,
    }


def _decoder(kind: str, **more: Any) -> _Maker:
    """What makes the config of a model like Llama."""
    return lambda shared, positions: _config(kind, **_sized(shared, positions), num_key_value_heads=HEADS // 2, **more)


def _bert(shared: dict[str, Any], positions: int) -> Any:
    return _config("BertConfig", **_sized(shared, positions), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def _bart(shared: dict[str, Any], positions: int) -> Any:
    sides = ("encoder", "decoder")
    return _config(
        "BartConfig",
        **shared,
        **{f"{side}_layers": LAYERS for side in sides},
        **{f"{side}_attention_heads": HEADS for side in sides},
        **{f"{side}_ffn_dim": 2 * HIDDEN for side in sides},
        d_model=HIDDEN,
        max_position_embeddings=positions,
        decoder_start_token_id=EOS_ID,
        forced_eos_token_id=None,
        dropout=0.0,
        init_std=0.1,  # With the usual 0.02 a model of this size gives nearly the same logits for every input.
    )


def _t5(shared: dict[str, Any], positions: int) -> Any:
    del positions  # T5 has relative ones.
    return _config(
        "T5Config",
        **shared,
        d_model=HIDDEN,
        d_kv=HIDDEN // HEADS,
        d_ff=2 * HIDDEN,
        num_layers=LAYERS,
        num_heads=HEADS,
        decoder_start_token_id=PAD_ID,
        dropout_rate=0.0,
    )


def _vlm(shared: dict[str, Any], positions: int) -> Any:
    vision = _config(
        "CLIPVisionConfig",
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        projection_dim=HIDDEN,
        image_size=PICTURE,
        patch_size=PICTURE // 2,
    )
    text = _decoder("LlamaConfig")({**shared, "vocab_size": shared["vocab_size"] + 1}, positions)
    return _config(
        "LlavaConfig",
        vision_config=vision,
        text_config=text,
        image_token_index=shared["vocab_size"],
        image_seq_length=PICTURE_TOKENS,
        vision_feature_layer=-1,
        pad_token_id=PAD_ID,
    )


BUILTIN_CONFIGS: Final[dict[str, _Maker]] = {
    "tiny-gpt2": _gpt2,
    "tiny-llama": _decoder("LlamaConfig"),
    "tiny-mistral": _decoder("MistralConfig", sliding_window=SLIDING_WINDOW),
    "tiny-qwen2": _decoder("Qwen2Config"),
    "tiny-bert": _bert,
    "tiny-bart": _bart,
    "tiny-t5": _t5,
    "tiny-embedder": _decoder("Qwen2Config"),
    "tiny-vlm": _vlm,
}
_ARCHITECTURES: Final = {
    "tiny-bert": "BertForMaskedLM",
    "tiny-bart": "BartForConditionalGeneration",
    "tiny-t5": "T5ForConditionalGeneration",
    "tiny-embedder": "Qwen2Model",
    "tiny-vlm": "LlavaForConditionalGeneration",
}


def _byte_characters() -> list[str]:
    """The 256 printable characters that stand for the bytes 0 to 255 (byte-level BPE of GPT-2, Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in set(printable) else chr(next(spare)) for byte in range(256)]


def byte_tokenizer(padding_side: str = "left") -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per byte, and <pad>, <bos> (put before every text) and <eos>.

    Raises BadInput for another `padding_side`.
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
        tokenizer_object=core, **SPECIAL_TOKENS, padding_side=padding_side, clean_up_tokenization_spaces=False
    )
