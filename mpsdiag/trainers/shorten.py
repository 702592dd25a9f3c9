"""The first examples of a dataset, whatever kind of dataset it is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset, Subset


def first_examples(dataset: Any, count: int) -> Any:
    """Cut a dataset to its first `count` examples, without reading it.

    Args:
        dataset: A `datasets` dataset (its columns stay known to the Trainer), a torch dataset or list, an iterable
            dataset, or a dictionary of these; None stays None.
        count: At most this many examples.
    """
    if dataset is None:
        return None
    if isinstance(dataset, dict):
        return {name: first_examples(part, count) for name, part in dataset.items()}
    if hasattr(dataset, "select") and hasattr(dataset, "__len__"):
        return dataset.select(range(min(count, len(dataset))))
    if hasattr(dataset, "take"):
        return dataset.take(count)
    if hasattr(dataset, "__len__"):
        return Subset(dataset, range(min(count, len(dataset))))
    return _First(dataset, count)


class _First(IterableDataset[Any]):
    """The first examples of an iterable dataset."""

    def __init__(self, dataset: Any, count: int) -> None:
        self.dataset = dataset
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.dataset), self.count)
