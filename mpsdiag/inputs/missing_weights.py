"""Weights that a checkpoint lacks, and that are random in the model made of it: kept with the model, and said."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

_KEPT_AS: Final = "mpsdiag_missing_weights"
_LISTED: Final = 5


def keep_missing(model: Any, names: Iterable[str]) -> None:
    """Remember which weights of a model its checkpoint did not have.

    Args:
        model: As it was loaded.
        names: `missing_keys` of transformers' loading info.
    """
    setattr(model, _KEPT_AS, tuple(sorted(names)))


def missing_note(model: Any) -> str | None:
    """One sentence about the weights that are random, without a full stop; None if the checkpoint had them all.

    Args:
        model: As it was loaded, or made otherwise.
    """
    missing: tuple[str, ...] = getattr(model, _KEPT_AS, ())
    if not missing:
        return None
    places = list(dict.fromkeys(_place(name) for name in missing))
    more = f" and {len(places) - _LISTED} more" if len(places) > _LISTED else ""
    tensors = "1 tensor" if len(missing) == 1 else f"{len(missing)} tensors"
    return (
        f"the checkpoint lacks weights of {', '.join(places[:_LISTED])}{more} ({tensors}): they are random, and so are "
        "the losses"
    )


def _place(name: str) -> str:
    """The layer that a weight belongs to, or its module outside of layers."""
    parts = name.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    return ".".join(parts[: number + 1] if number is not None else parts[:-1] or parts)
