"""Token ids and labels against the sizes of the model: not every device complains about an index out of range."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mpsdiag.inputs.nonfinite import IGNORED_LABEL
from mpsdiag.tracing.causes.given_values import CLASSES_REMEDY, INDICES_REMEDY, ask, output_matrix
from mpsdiag.tracing.origin import Origin
from mpsdiag.tracing.watch.tensors import flat, listed


@dataclass(frozen=True)
class _Table:
    """What indices of the batch are looked up in: of `size` rows, by `operation` in `module`."""

    key: str
    size: int
    module: str
    operation: str
    what: str

    def counted(self, indices: Tensor) -> Tensor:
        """The indices that have to be within bounds; labels that are ignored become 0."""
        return indices.masked_fill(indices == IGNORED_LABEL, 0) if self.key == "labels" else indices


class Indices:
    """Checks the indices of batches for one model."""

    def __init__(self, model: nn.Module) -> None:
        self._tables = list(_tables(model))

    def extremes(self, batch: Mapping[str, Any]) -> list[Tensor]:
        """The least and greatest indices, as scalars on the device, to be read with other things and given to `fit`."""
        found: list[Tensor] = []
        for table, indices in self._looked_up(batch):
            counted = table.counted(indices)
            found += [counted.amin(), counted.amax()]
        return found

    def fit(self, batch: Mapping[str, Any], extremes: Sequence[float]) -> bool:
        """Whether the extremes of a batch are within bounds."""
        sizes = [table.size for table, _ in self._looked_up(batch)]
        pairs = zip(extremes[::2], extremes[1::2], sizes, strict=True)
        return all(least >= 0 and greatest < size for least, greatest, size in pairs)

    def explain(self, batch: Mapping[str, Any]) -> Origin | None:
        """The origin for the first index out of range; None if all fit. Waits for the device."""
        for table, indices in self._looked_up(batch):
            counted = table.counted(indices)
            wrong = (counted < 0) | (counted >= table.size)
            if bool(wrong.any()):
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
    """Whether a label is the number of a class; a single class stands for a regression."""
    kind = getattr(config, "problem_type", None)
    return getattr(config, "num_labels", 0) > 1 and kind in (None, "single_label_classification")


def _origin(table: _Table, indices: Tensor, wrong: Tensor) -> Origin:
    least, greatest = int(indices.min()), int(indices.max())
    return Origin(
        cause="bad_inputs",
        module=table.module,
        operation=table.operation,
        phase="data",
        summary=f"'{table.key}' reaches from {least} to {greatest}, and {table.what} takes 0 to {table.size - 1}",
        evidence={
            "input": table.key,
            "out_of_range": int(wrong.sum()),
            "sequences": listed(wrong.any(-1) if wrong.dim() > 1 else wrong),
            "size": table.size,
            "range": [least, greatest],
        },
        remedy=CLASSES_REMEDY if "num_labels" in table.what else INDICES_REMEDY,
    )
