"""Rows of a dataset on the hub, or in its local cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mpsdiag.errors import BadInput
from mpsdiag.inputs.hub import offline_if_unreachable
from mpsdiag.inputs.sources import explain_missing


def open_hub(dataset: str, config: str | None) -> Mapping[str, Iterable[Mapping[str, Any]]]:
    """Open a hub dataset, all its splits.

    Args:
        dataset: Hub name.
        config: Its configuration, if it has several.

    Raises:
        BadInput: It cannot be found or reached, or has no such configuration.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        with offline_if_unreachable():
            return dict(load_dataset(dataset, config))
    except (OSError, ValueError, DatasetsError) as problem:
        raise BadInput(explain_missing("dataset", dataset, problem)) from problem
