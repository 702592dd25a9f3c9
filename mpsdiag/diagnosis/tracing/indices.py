"""Token ids and labels against the sizes of the model: not every device complains about an index out of range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mpsdiag.diagnosis.tracing.causes import Explanation
from mpsdiag.diagnosis.tracing.causes.given import INDICES_REMEDY
from mpsdiag.diagnosis.tracing.origin import Origin
from mpsdiag.diagnosis.tracing.tensors import listed
from mpsdiag.training.nonfinite import IGNORED_LABEL


class Indices:
    """Checks the indices of batches for one model.

    Args:
        model: Its input embedding and output matrix give the sizes; what it does not have is not checked.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._table = _embedding(model)
        self._outputs = _output_size(model)

    def extremes(self, batch: Mapping[str, Any]) -> list[Tensor]:
        """The least and greatest indices, as scalars on the device, to be read with other things and given to `fit`."""
        found: list[Tensor] = []
        for tensor, _ in self._checked(batch):
            found += [tensor.amin(), tensor.amax()]
        return found

    def fit(self, batch: Mapping[str, Any], extremes: Sequence[float]) -> bool:
        """Whether the extremes of a batch are within bounds."""
        sizes = [size for _, size in self._checked(batch)]
        pairs = zip(extremes[::2], extremes[1::2], sizes, strict=True)
        return all(least >= 0 and greatest < size for least, greatest, size in pairs)

    def explain(self, batch: Mapping[str, Any]) -> Origin | None:
        """The origin for the first index out of range; None if all fit. Waits for the device."""
        ids, labels = _indices(batch, "input_ids"), _indices(batch, "labels")
        if self._table is not None and ids is not None:
            name = next((name for name, module in self._model.named_modules() if module is self._table), "")
            size = self._table.num_embeddings
            wrong = (ids < 0) | (ids >= size)
            if bool(wrong.any()):
                return _origin(
                    name, "embedding", _out_of_range("input_ids", ids, wrong, size, "the embedding")
                )
        if self._outputs is not None and labels is not None:
            wrong = (labels >= self._outputs) | ((labels < 0) & (labels != IGNORED_LABEL))
            if bool(wrong.any()):
                explanation = _out_of_range("labels", labels, wrong, self._outputs, "the logits")
                return _origin("", "cross_entropy", explanation)
        return None

    def _checked(self, batch: Mapping[str, Any]) -> list[tuple[Tensor, int]]:
        """Index tensors with the number of rows they point into."""
        found: list[tuple[Tensor, int]] = []
        ids, labels = _indices(batch, "input_ids"), _indices(batch, "labels")
        if self._table is not None and ids is not None:
            found.append((ids, self._table.num_embeddings))
        if self._outputs is not None and labels is not None:
            found.append((labels.masked_fill(labels == IGNORED_LABEL, 0), self._outputs))
        return found


def _indices(batch: Mapping[str, Any], name: str) -> Tensor | None:
    value = batch.get(name)
    if not isinstance(value, Tensor) or value.numel() == 0 or value.is_floating_point():
        return None
    return value


def _out_of_range(key: str, indices: Tensor, wrong: Tensor, size: int, what: str) -> Explanation:
    rows = wrong.any(-1) if wrong.dim() > 1 else wrong
    least, greatest = int(indices.min()), int(indices.max())
    return Explanation(
        "bad_inputs",
        f"'{key}' reaches from {least} to {greatest}, and {what} of the model takes 0 to {size - 1}",
        INDICES_REMEDY,
        {
            "input": key,
            "out_of_range": int(wrong.sum()),
            "sequences": listed(rows),
            "size": size,
            "range": [least, greatest],
        },
    )


def _origin(module: str, operation: str, explanation: Explanation) -> Origin:
    return Origin(
        cause=explanation.cause,
        layer=None,
        module=module,
        operation=operation,
        phase="data",
        summary=explanation.summary,
        evidence=explanation.evidence,
        remedy=explanation.remedy,
    )


def _embedding(model: nn.Module) -> nn.Embedding | None:
    getter = getattr(model, "get_input_embeddings", None)
    table = getter() if getter is not None else None
    return table if isinstance(table, nn.Embedding) else None


def _output_size(model: nn.Module) -> int | None:
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if getter is not None else None
    weight = getattr(head, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.dim() == 2 else None
