"""The fix `positions`: position ids made from the attention mask, for models that number from the left edge.

GPT-2 and similar models count positions from 0 at the left edge of the batch, padding included, unless they are given
position ids. The fix is right only if it was seen to restore the results of each sequence alone: it breaks models that
make positions from the token ids themselves, such as RoBERTa.
"""

import inspect
from collections.abc import Callable
from typing import Any, Final

import torch  # The compiler of torch 2.5 looks for this name where `call` was written.
from torch import nn

from mpsdiag.errors import BadInput
from mpsdiag.fixes import anatomy
from mpsdiag.fixes.imports import when_imported
from mpsdiag.fixes.modes import Handle
from mpsdiag.words import POSITIONS

_INSTALLED: Final[list[object]] = []


def position_ids(attention_mask: torch.Tensor, length: int) -> torch.Tensor:
    """The position of each token among the real ones of its sequence, (sequences, length) int64; 0 at left padding.

    The mask is (sequences, positions), 0 at padding; with a cache it is longer than the `length` tokens that are given.
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]


def with_position_ids(collator: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """A collator whose batches have position ids made from their 2D attention mask; others are passed on unchanged."""

    def collate(*args: Any, **kwargs: Any) -> dict[str, Any]:
        batch = collator(*args, **kwargs)
        mask = batch.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.dim() == 2:
            batch["position_ids"] = position_ids(mask, mask.shape[1])
        return batch

    return collate


def apply_positions(model: nn.Module) -> Handle:
    """Give one model position ids whenever it is called without any, but with a 2D attention mask.

    Raises BadInput if no transformers model in `model` takes position ids.
    """
    takers = [root for root in anatomy.transformers_models(model) if _takes_positions(root)]
    if not takers:
        raise BadInput(f"{type(model).__name__} takes no position_ids: the fix '{POSITIONS}' cannot be applied to it.")
    hooks = [taker.register_forward_pre_hook(_fill, with_kwargs=True) for taker in takers]

    def remove() -> None:
        for hook in hooks:
            hook.remove()

    return Handle(POSITIONS, remove)


def install_positions() -> Handle:
    """Do the same for every transformers model of the process that takes position ids, now or later."""
    installation = object()
    _INSTALLED.append(installation)
    when_imported("transformers.modeling_utils", _wrap_call)
    return Handle(POSITIONS, lambda: _INSTALLED.remove(installation))


def _wrap_call() -> None:
    """Wrap the call of transformers' models once; while nothing is installed the wrapper passes every call on."""
    from transformers.modeling_utils import PreTrainedModel

    cls: Any = PreTrainedModel
    own = vars(cls).get("__call__")
    if getattr(own, "_mpsdiag", False):
        return

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _INSTALLED and _takes_positions(self):
            args, kwargs = _fill(self, args, kwargs) or (args, kwargs)
        # Looked up now, so that wrappers installed since, such as a watcher, are called.
        return own(self, *args, **kwargs) if own else super(cls, self).__call__(*args, **kwargs)

    call._mpsdiag = True  # type: ignore[attr-defined]  # noqa: SLF001 - our own mark
    cls.__call__ = call


def _takes_positions(model: nn.Module) -> bool:
    parameters = inspect.signature(model.forward).parameters
    return "position_ids" in parameters and "attention_mask" in parameters


def _fill(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments with position ids; None if they already have some, or nothing to make them from."""
    given = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
    given = {**given, **given.get("kwargs", {})}
    mask = given.get("attention_mask")
    tokens = next((given[name] for name in ("input_ids", "inputs_embeds") if given.get(name) is not None), None)
    if given.get("position_ids") is not None or not isinstance(mask, torch.Tensor) or mask.dim() != 2 or tokens is None:
        return None
    return args, {**kwargs, "position_ids": position_ids(mask, tokens.shape[1])}
