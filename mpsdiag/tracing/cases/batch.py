"""A batch as the model can take it: checked against the model's arguments, and moved to its device."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from mpsdiag.errors import BadInput, nearest
from mpsdiag.tracing.watch.device_label import device_of

Batch = dict[str, Any]

# Taken by transformers models through **kwargs, and not named in their signatures.
_EXTRA: Final = (
    "num_items_in_batch",
    "shift_labels",
    "output_hidden_states",
    "output_attentions",
    "return_dict",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "position_ids",
    "token_type_ids",
)
# Of one shape with the token ids.
_ALIGNED: Final = ("labels", "position_ids", "token_type_ids", "shift_labels")


def prepare_batch(model: nn.Module, batch: Mapping[str, Any]) -> Batch:
    """Check a batch, turn lists of numbers into tensors, and move it to the model's device.

    Args:
        model: The model that is to take it.
        batch: Its keyword arguments, such as `input_ids`, `attention_mask`, `labels` of (sequences, positions).

    Raises:
        BadInput: It is no mapping, is empty, has a key the model does not take, or lengths that do not fit together.
    """
    if not isinstance(batch, Mapping):
        raise BadInput(
            f"A batch is a mapping from argument names to tensors, not a {type(batch).__name__}. "
            'Give for example {"input_ids": ..., "attention_mask": ..., "labels": ...}.'
        )
    if not batch:
        raise BadInput("The batch is empty. Give at least input_ids.")
    tensors = {str(name): _tensor(str(name), value) for name, value in batch.items()}
    _check_keys(model, tensors)
    _check_lengths(tensors)
    device = device_of(model)
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in tensors.items()}


def _tensor(name: str, value: Any) -> Any:
    if not isinstance(value, list) or not value:
        return value
    try:
        return torch.tensor(value)
    except (ValueError, TypeError, RuntimeError) as problem:
        raise BadInput(f"'{name}' of the batch cannot be made a tensor: {problem}.") from problem


def _check_keys(model: nn.Module, batch: Batch) -> None:
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind == p.VAR_POSITIONAL and p.name == "args" for p in parameters):
        return  # A wrapper that hands everything on: what it takes cannot be read.
    taken = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    named = [p.name for p in taken]
    takes_more = any(p.kind == p.VAR_KEYWORD for p in parameters)
    known = [*named, *(_EXTRA if takes_more else ())]
    for name in batch:
        if name not in known:
            raise BadInput(
                f"The batch has a key '{name}' that {type(model).__name__} does not take. {nearest(name, named)}"
            )
    missing = [p.name for p in taken if p.default is p.empty and p.name not in batch]
    main = getattr(model, "main_input_name", None)
    if main in named and main not in batch and "inputs_embeds" not in batch:
        missing = [main]
    if missing:
        raise BadInput(
            f"The batch lacks '{missing[0]}', which {type(model).__name__} needs; it has: {', '.join(batch)}."
        )


def _check_lengths(batch: Batch) -> None:
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor):
        return
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise BadInput(f"'input_ids' of the batch holds {ids.dtype}; token ids are integers.")
    if ids.dim() != 2 or not ids.numel():
        raise BadInput(
            f"'input_ids' of the batch has the shape {tuple(ids.shape)}; it has to be (sequences, positions)."
        )
    for name in _ALIGNED:
        other = batch.get(name)
        if isinstance(other, Tensor) and other.dim() == 2 and not _fits(other, ids, exact=name == "labels"):
            raise BadInput(_misfit(name, other, ids))
    mask = batch.get("attention_mask")
    if (
        isinstance(mask, Tensor)
        and mask.dim() == 2
        and not _fits(mask, ids, exact="past_key_values" not in batch)
    ):
        raise BadInput(_misfit("attention_mask", mask, ids))


def _fits(tensor: Tensor, ids: Tensor, *, exact: bool) -> bool:
    if exact:
        return tensor.shape == ids.shape
    return tensor.shape[0] in (1, ids.shape[0]) and tensor.shape[1] >= ids.shape[1]


def _misfit(name: str, tensor: Tensor, ids: Tensor) -> str:
    return (
        f"'{name}' of the batch has the shape {tuple(tensor.shape)} and 'input_ids' {tuple(ids.shape)}: "
        "they have to be of one shape, (sequences, positions)."
    )
