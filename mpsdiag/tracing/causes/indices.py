"""Indices compared with the sizes of the tables they index: not every device reports an index out of range."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpsdiag.inputs.nonfinite import IGNORED_LABEL
from mpsdiag.tracing.causes.root_cause import Candidate
from mpsdiag.tracing.origin import REMEDIES, Origin
from mpsdiag.tracing.watch.calls import TARGETED
from mpsdiag.tracing.watch.tensors import facts, flat, listed, tensors_in


@dataclass(frozen=True)
class _Table:
    """A table that indices of the batch refer to: `size` rows, read by `operation` in `module`."""

    key: str
    size: int
    module: str
    operation: str
    what: str

    def outside(self, indices: Tensor) -> Tensor:
        """Which indices are out of bounds; labels that are ignored are not."""
        counted = indices.masked_fill(indices == IGNORED_LABEL, 0) if self.key == "labels" else indices
        return (counted < 0) | (counted >= self.size)


class Indices:
    """Checks the indices of batches for one model."""

    def __init__(self, model: nn.Module) -> None:
        self._tables = list(_tables(model))

    def outside(self, batch: Mapping[str, Any]) -> list[Tensor]:
        """For each table whether an index is out of bounds, a bool scalar on the device."""
        return [table.outside(indices).any() for table, indices in self._looked_up(batch)]

    def explain(self, batch: Mapping[str, Any]) -> Origin | None:
        """The origin for the first index out of range; None if all fit. Waits for the device."""
        for table, indices in self._looked_up(batch):
            if bool((wrong := table.outside(indices)).any()):
                return _origin(table, indices, wrong)
        return None

    def _looked_up(self, batch: Mapping[str, Any]) -> Iterator[tuple[_Table, Tensor]]:
        for table in self._tables:
            indices = flat(batch).get(table.key)
            if isinstance(indices, Tensor) and indices.numel() and not indices.is_floating_point():
                yield table, indices


def _tables(model: nn.Module) -> Iterator[_Table]:
    config = getattr(model, "config", None)
    embedding = ask(model, "get_input_embeddings")
    if isinstance(embedding, nn.Embedding):
        name = next((name for name, module in model.named_modules() if module is embedding), "")
        keys = ("input_ids", "decoder_input_ids") if getattr(config, "is_encoder_decoder", False) else ("input_ids",)
        for key in keys:
            yield _Table(key, embedding.num_embeddings, name, "embedding", "the embedding of the model")
    weight = output_matrix(model)
    if weight is not None:
        yield _Table("labels", int(weight.shape[0]), "", "cross_entropy", "the logits of the model")
    elif type(model).__name__.endswith("Classification") and _one_label(config):
        classes = int(config.num_labels)  # type: ignore[union-attr]  # asked by _one_label
        yield _Table("labels", classes, "", "cross_entropy", f"the classifier (num_labels {classes})")


def _one_label(config: Any) -> bool:
    """Whether a label is the number of a class; a single class means regression."""
    kind = getattr(config, "problem_type", None)
    return getattr(config, "num_labels", 0) > 1 and kind in (None, "single_label_classification")


def _origin(table: _Table, indices: Tensor, wrong: Tensor) -> Origin:
    summary, evidence = _reaches(table.key, indices, table.size, table.what)
    evidence |= {"out_of_range": int(wrong.sum()), "sequences": listed(wrong.any(-1) if wrong.dim() > 1 else wrong)}
    return Origin(
        cause="bad_inputs",
        module=table.module,
        operation=table.operation,
        phase="data",
        summary=summary,
        evidence=evidence,
        remedy=REMEDIES["classes" if "num_labels" in table.what else "indices"],
    )


def _reaches(key: str | None, indices: Tensor, size: int, what: str) -> tuple[str, dict[str, Any]]:
    span = [int(indices.min()), int(indices.max())]
    name = f"'{key or 'an index'}'"
    summary = f"{name} ranges from {span[0]} to {span[1]}, but {what} takes 0 to {size - 1}"
    return summary, {"input": key, "size": size, "range": span}


def index_out_of_range(first: Candidate) -> Origin | None:
    """An index of the batch is out of range of its table; the CPU refuses it, a device may read garbage."""
    if not isinstance(first.event.error, IndexError):
        return None
    integers = [facts(tensor, name) for name, tensor in first.inputs if not tensor.is_floating_point()]
    evidence = {"indices": integers, "error": str(first.event.error)}
    operation, named = first.event.operation, first.named
    table, loss = named.get("weight" if operation == "embedding" else "input"), operation in TARGETED
    if not isinstance(table, Tensor) or not (loss or operation == "embedding"):
        what = f"an index is out of range ({first.event.error})"
        return first.origin("bad_inputs", what, "indices", **evidence)
    size = table.shape[1] if loss and table.dim() > 1 else table.shape[0]
    indices: Tensor = named["target" if loss else "input"]
    given = dict(tensors_in(first.batch))
    outside = [name for name, tensor in given.items() if _outside(name, tensor, size)]
    same = [name for name in outside if torch.equal(given[name].flatten(), indices.flatten())]
    key = next(iter([*same, *(name for name in outside if loss and name == "labels"), *outside]), None)
    indices = indices if key is None else given[key]
    classes = loss and not isinstance(output_matrix(first.model), Tensor)
    what = f"the classifier (num_labels {size})" if classes else f"the table of {operation}"
    summary, found = _reaches(key, indices, size, what)
    remedy = "classes" if classes else "indices"
    return first.origin("bad_inputs", f"{summary} ({first.event.error})", remedy, **evidence, **found)


def _outside(name: str, tensor: Tensor, size: int) -> bool:
    if tensor.is_floating_point() or tensor.dtype == torch.bool or not tensor.numel():
        return False
    counted = tensor[tensor != IGNORED_LABEL] if "label" in name else tensor
    return bool(((counted < 0) | (counted >= size)).any())


def output_matrix(model: nn.Module) -> Tensor | None:
    """The matrix that gives the logits of a language model, (vocabulary, channels); None for other models."""
    weight = getattr(ask(model, "get_output_embeddings"), "weight", None)
    return weight if isinstance(weight, Tensor) and weight.dim() == 2 else None


def ask(model: nn.Module, getter: str) -> Any:
    """The result of a getter of transformers' models; None if a model has none or does not implement it."""
    get = getattr(model, getter, None)
    try:
        return None if get is None else get()
    except NotImplementedError:
        return None
