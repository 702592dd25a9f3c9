"""Rows and batches for every task: texts and pictures as tensors, padded, with labels to evaluate on."""

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from mpsdiag.inputs.builtin import PICTURE, PICTURE_TOKENS
from mpsdiag.inputs.nonfinite import IGNORED_LABEL
from mpsdiag.inputs.texts import encode

Row = dict[str, Any]
POOLED_BY: Final = "mpsdiag_pooling"
"""Attribute with the pooling methods of a model from a sentence-transformers folder."""
_MASKED_OF: Final = 6
"""One in this many tokens of a text is masked and predicted."""
_TEMPERATURE: Final = 1.0


def with_tiny_picture(
    text: str, picture: bool, tokenizer: Any, longest: int, config: Any, generator: random.Random
) -> Row:
    """A row of the built-in image-text model."""
    row: Row = dict(encode([text], tokenizer, longest)[0])
    if picture:
        row["input_ids"] = [*[config.image_token_index] * PICTURE_TOKENS, *row["input_ids"]][:longest]
        row["attention_mask"] = [1] * len(row["input_ids"])
        noise = torch.Generator().manual_seed(generator.getrandbits(31))
        row["pixel_values"] = torch.rand(1, 3, PICTURE, PICTURE, generator=noise)
    return row


def with_processor(
    text: str, picture: bool, processor: Any, longest: int, config: Any, generator: random.Random
) -> Row:
    """A row made by the model's own processor; the text is cut first, because tokens of a picture cannot be."""
    from PIL import Image

    del config
    tokenizer = processor.tokenizer
    kept = tokenizer(text, truncation=True, max_length=longest, add_special_tokens=False)["input_ids"]
    text = tokenizer.decode(kept)
    images = None
    if picture:
        images = [Image.frombytes("RGB", (64, 64), generator.randbytes(64 * 64 * 3))]
        text = f"{getattr(processor, 'image_token', '<image>')}{text}"
    row = dict(processor(text=[text], images=images, return_tensors="pt"))
    return {name: value[0].tolist() if name in _PER_TOKEN else value for name, value in row.items()}


_PER_TOKEN: Final = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


# Batches and their labels.


def padded(rows: Sequence[Row], tokenizer: Any, multiple: int | None, dtype: torch.dtype) -> dict[str, Any]:
    """Rows as tensors: values for each token are padded, values for pictures concatenated."""
    texts = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows]
    batch = dict(tokenizer.pad(texts, pad_to_multiple_of=multiple, return_tensors="pt"))
    left, width = tokenizer.padding_side == "left", batch["input_ids"].shape[1]
    others = dict.fromkeys(name for row in rows for name in row if name not in (*batch, "labels"))
    for name in others:
        if name in _PER_TOKEN:
            values = [row.get(name, [0] * len(row["input_ids"])) for row in rows]
            gaps = [[0] * (width - len(value)) for value in values]
            batch[name] = torch.tensor(
                [[*gap, *v] if left else [*v, *gap] for gap, v in zip(gaps, values, strict=True)]
            )
        else:
            joined = torch.cat([row[name] for row in rows if name in row])
            batch[name] = joined.to(dtype) if joined.is_floating_point() else joined
    return batch


def picture_token(model: Any) -> int:
    """The id that stands for a part of a picture; -1, which no token has, if a model has no picture tokens."""
    config = getattr(model, "config", None)
    found = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    return -1 if found is None else int(found)


def _next_token_labels(batch: dict[str, Any], *, tokenizer: Any, model: Any, **_: Any) -> None:
    """The ids themselves; none at padding, at tokens that equal the pad token, and at those of pictures."""
    ids = batch["input_ids"]
    hidden = (ids == tokenizer.pad_token_id) | (ids == picture_token(model))
    batch["labels"] = ids.masked_fill(hidden, IGNORED_LABEL)


def _masked_labels(batch: dict[str, Any], *, tokenizer: Any, **_: Any) -> None:
    """Every sixth real token is masked and labelled; the byte-level tokenizer masks with its last special token."""
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    chosen = real & ((real.cumsum(-1) - 1) % _MASKED_OF == 0)
    mask = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else tokenizer.eos_token_id
    batch["labels"] = ids.masked_fill(~chosen, IGNORED_LABEL)
    batch["input_ids"] = ids.masked_fill(chosen, mask if mask is not None else tokenizer.pad_token_id)


def _text_labels(batch: dict[str, Any], *, model: Any, **_: Any) -> None:
    """The first half of the text itself, padded on the right, as DataCollatorForSeq2Seq does by default."""
    rows = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    targets = [row[: max(1, (len(row) + 1) // 2)] for row in rows]
    labels = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORED_LABEL)
    batch["labels"] = labels
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)


def _class_labels(batch: dict[str, Any], *, given: list[Any], tokenizer: Any, model: Any) -> None:
    """Those of the rows, or classes made from the ids; numbers for a regression, 0 and 1 for each of many labels."""
    classes, kind = int(model.config.num_labels), model.config.problem_type
    if model.config.pad_token_id is None:  # Decoders look for their last real token by it.
        model.config.pad_token_id = tokenizer.pad_token_id
    total = (batch["input_ids"] * batch["attention_mask"]).sum(-1)
    if given:
        batch["labels"] = torch.tensor(given)
    elif kind == "multi_label_classification":
        batch["labels"] = ((total.unsqueeze(-1) >> torch.arange(classes)) % 2).float()
    elif kind == "regression" or (kind is None and classes == 1):
        batch["labels"] = (total % 7).float() / 7
    else:
        batch["labels"] = total % classes


def _tag_labels(batch: dict[str, Any], *, model: Any, **_: Any) -> None:
    tags = batch["input_ids"] % int(model.config.num_labels)
    batch["labels"] = tags.masked_fill(~batch["attention_mask"].bool(), IGNORED_LABEL)


def _pooling_weights(batch: dict[str, Any], *, model: Any, **_: Any) -> None:
    """The weight of each position in an embedding: by its folder, or the last token of a decoder, otherwise the mean.

    For several methods (sequences, positions, methods). If the largest value counts, the weight is -1.
    """
    real = batch["attention_mask"]
    ways = getattr(model, POOLED_BY, None) or ["mean" if sees_both_ways(model.config) else "lasttoken"]
    weights = [_POOLING_WEIGHTS[way](real) for way in ways]
    batch["labels"] = weights[0] if len(weights) == 1 else torch.stack(weights, -1)


def _only(real: Tensor, position: Tensor) -> Tensor:
    return functional.one_hot(position, real.shape[1]).float()


def _shares(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True).clamp(min=1)


_POOLING_WEIGHTS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "cls": lambda real: _only(real, real.argmax(-1)),
    "lasttoken": lambda real: _only(real, real.shape[1] - 1 - real.flip(-1).argmax(-1)),
    "mean": _shares,
    "mean_sqrt_len_tokens": lambda real: real / real.sum(-1, keepdim=True).clamp(min=1).sqrt(),
    "weightedmean": lambda real: _shares(real.cumsum(-1) * real),
    "max": lambda real: -real.float(),
}


def sees_both_ways(config: Any) -> bool:
    """Whether a model of this config is an encoder, whose queries also see later keys."""
    from transformers.models.auto import modeling_auto

    if getattr(config, "is_causal", True) is False or getattr(config, "is_encoder_decoder", False):
        return True
    # Configs of decoders do not say so; those that can be either are encoders unless `is_decoder` is set.
    either = getattr(modeling_auto, "MODEL_FOR_MASKED_LM_MAPPING_NAMES", {})
    if getattr(config, "model_type", None) not in either:
        return False
    return not (getattr(config, "is_decoder", False) or getattr(config, "causal", False))


LABELS: Final[dict[str, Callable[..., None]]] = {
    "text-generation": _next_token_labels,
    "image-text-to-text": _next_token_labels,
    "fill-mask": _masked_labels,
    "text2text-generation": _text_labels,
    "text-classification": _class_labels,
    "token-classification": _tag_labels,
    "feature-extraction": _pooling_weights,
}


def pooled(hidden: Tensor, weights: Tensor) -> Tensor:
    """Embeddings of length one, (sequences, features), from hidden states and the labels of feature extraction."""
    parts = []
    for column in weights.reshape(*hidden.shape[:2], -1).unbind(-1):
        unused = (column == 0).unsqueeze(-1)
        if bool((column < 0).any()):
            parts.append(hidden.masked_fill(unused, torch.finfo(hidden.dtype).min).amax(1))
        else:
            # A product would spread NaN from positions of weight zero.
            parts.append((hidden.masked_fill(unused, 0.0) * column.unsqueeze(-1).to(hidden.dtype)).sum(1))
    return functional.normalize(torch.cat(parts, -1), dim=-1)


def contrastive_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """The loss of finding each embedding among those of the batch (Gao et al. 2021, without dropout), in float32."""
    del num_items_in_batch
    embeddings = pooled(outputs["last_hidden_state"], labels).float()
    scores = embeddings @ embeddings.T / _TEMPERATURE
    return functional.cross_entropy(scores, torch.arange(len(scores), device=scores.device))
