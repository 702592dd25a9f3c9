"""Rows of a dataset on the hub, or in its local cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mpsdiag.errors import BadInput
from mpsdiag.training.sources import explain_missing


def read_hub(dataset: str, config: str | None, split: str) -> Iterator[Mapping[str, Any]]:
    """Go through the rows of a hub dataset.

    Args:
        dataset: Hub name.
        config: Its configuration, if it has several.
        split: Which split.

    Raises:
        BadInput: It cannot be found or reached, or has no such configuration or split.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        loaded = load_dataset(dataset, config, split=split)
    except (OSError, ValueError, DatasetsError) as problem:
        raise BadInput(explain_missing("dataset", dataset, problem)) from problem
    return iter(loaded)
