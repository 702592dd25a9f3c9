"""A batch for a model, moved to its device; the model's own forward decides which arguments it accepts."""

import difflib
import inspect
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mpsdiag.errors import BadInput, first_line
from mpsdiag.inputs.modules import move
from mpsdiag.tracing.watch.model_state import device_of
from mpsdiag.tracing.watch.tensors import flat, tensors_in

REFUSALS = (TypeError, ValueError, KeyError, AttributeError, AssertionError)
"""What a model raises that does not accept a batch."""

logger = logging.getLogger(__name__)


def prepare_batch(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Turn lists of numbers into tensors, and move everything to the model's device."""
    if not isinstance(batch, Mapping):
        raise BadInput(
            f"A batch is a mapping from argument names to tensors, not a {type(batch).__name__}. "
            'For example, give {"input_ids": ..., "attention_mask": ..., "labels": ...}.'
        )
    if not batch:
        raise BadInput("The batch is empty. Give at least input_ids.")
    if (whole := _whole_batch(model, batch)) is not None:
        batch = {whole: batch}
    typo = _typo(model, batch)
    if typo:
        logger.warning("The model takes the batch as it is, but: %s", typo)
    device = device_of(model)
    prepared = {str(name): move(_tensor(str(name), value), device) for name, value in batch.items()}
    if _has_short_mask(flat(prepared)):  # Models may take it, and leave tokens without a mask.
        raise BadInput(f"'attention_mask' does not cover 'input_ids'. The batch has {shapes(prepared)}.")
    return prepared


def _whole_batch(model: nn.Module, batch: Mapping[str, Any]) -> str | None:
    """The argument that takes the whole batch, as in sentence-transformers; None for other models."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    takes_all = len(needed) == 1 and not batch.keys() & {p.name for p in parameters}
    return needed[0] if takes_all and len(batch) > 1 else None


def _tensor(name: str, value: Any) -> Any:
    if not isinstance(value, list) or not value or any(True for _ in tensors_in(value)):
        return value
    try:
        return torch.tensor(value)
    except (ValueError, TypeError, RuntimeError) as problem:
        raise BadInput(f"'{name}' of the batch cannot be converted to a tensor: {problem}.") from problem


def refusal(model: nn.Module, batch: Mapping[str, Any], problem: BaseException) -> str:
    """The message about a batch that a model does not accept."""
    sentences = [f"{type(model).__name__} does not accept this batch: {first_line(problem, 300)}."]
    return " ".join([*sentences, *hints(model, batch), f"The batch has {shapes(batch)}."])


def hints(model: nn.Module, batch: Mapping[str, Any]) -> list[str]:
    """Hints about a batch that its model has refused."""
    found, ids, labels = [_typo(model, batch)], batch.get("input_ids"), batch.get("labels")
    main = getattr(model, "main_input_name", None)
    if main in _parameters(model) and not batch.keys() & {main, "inputs_embeds", "encoder_outputs"}:
        found.append(f"The batch has no '{main}'.")
    if isinstance(ids, Tensor):
        if ids.is_floating_point() or ids.dtype == torch.bool:
            found.append(f"'input_ids' holds {ids.dtype}; token ids must be integers.")
        if ids.dim() < 2:
            found.append("'input_ids' must have the shape (sequences, positions).")
        if isinstance(labels, Tensor) and labels.dim() and ids.dim() and labels.shape[0] != ids.shape[0]:
            found.append("'labels' and 'input_ids' have different numbers of sequences.")
    kind = getattr(getattr(model, "config", None), "problem_type", None)
    if isinstance(labels, Tensor):
        if kind == "multi_label_classification" and not labels.is_floating_point():
            found.append(f"'labels' holds {labels.dtype}; multiple labels must be floats, 0.0 or 1.0.")
        if kind in {None, "single_label_classification"} and labels.is_floating_point():
            found.append(f"'labels' holds {labels.dtype}; classes and tokens must be integers.")
    return [sentence for sentence in found if sentence]


def _has_short_mask(batch: Mapping[str, Any]) -> bool:
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    if not (isinstance(ids, Tensor) and isinstance(mask, Tensor) and ids.dim() == mask.dim() == 2):
        return False
    return mask.shape[0] not in (1, ids.shape[0]) or mask.shape[1] < ids.shape[1]


def _typo(model: nn.Module, batch: Mapping[str, Any]) -> str | None:
    """A key that the model does not have, but that resembles one missing from the batch."""
    named = _parameters(model)
    for key in batch:
        missing = [name for name in named if name not in batch]
        close = [] if key in named else difflib.get_close_matches(key, missing, n=1, cutoff=0.75)
        if close:
            return f"{type(model).__name__} has no argument '{key}'. Did you mean '{close[0]}'?"
    return None


def _parameters(model: nn.Module) -> list[str]:
    parameters = inspect.signature(model.forward).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def shapes(batch: Mapping[str, Any]) -> str:
    """Names, shapes and dtypes, for a message."""
    found = [
        f"{name} {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for name, tensor in tensors_in(batch)
    ]
    return ", ".join([*found, *(n for n, value in batch.items() if not any(True for _ in tensors_in(value)))])
