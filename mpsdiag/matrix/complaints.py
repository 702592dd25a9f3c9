"""What is wrong with a matrix, as a sentence: where it stands, what it is, and the nearest word that would be right."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mpsdiag.errors import BadInput, nearest

Model = TypeVar("Model", bound=BaseModel)
Place = tuple[str, ...]
_WORD = re.compile(r"'([^']*)'")


def validated(model: type[Model], document: Any, where: Callable[[Place], str]) -> Model:
    """Make a model of a document.

    Args:
        model: What it should be.
        document: As parsed from TOML, or made of options.
        where: Says where the key of a place stands, such as `matrix.toml line 7, axes.attention`.

    Raises:
        BadInput: It is not; every problem is in the sentence, up to three.
    """
    try:
        return model.model_validate(document)
    except ValidationError as problem:
        parts = []
        for error in problem.errors()[:3]:
            place = keys(error["loc"])
            parts.append(f"{where(place)}: {_what(model, place, error)}")
        more = f" And {len(problem.errors()) - 3} more." if len(problem.errors()) > 3 else ""
        raise BadInput(" ".join(dict.fromkeys(parts)) + more) from problem


def keys(location: Sequence[int | str]) -> Place:
    """A pydantic location as keys and list positions, without the names of validators in it."""
    return tuple(str(part) for part in location if isinstance(part, int) or re.fullmatch(r"[\w-]+", part))


def _what(model: type[BaseModel], place: Place, error: Any) -> str:
    kind, given = error["type"], error.get("input")
    if kind == "extra_forbidden":
        return f"unknown key '{place[-1]}'. {nearest(place[-1], _siblings(model, place))}"
    if kind == "literal_error":
        words = _WORD.findall(str(error["ctx"]["expected"]))
        name = next((part for part in reversed(place) if not part.isdigit()), "word").replace("_", " ")
        return f"unknown {name} '{given}'. {nearest(str(given), words)}"
    if kind == "value_error":
        return f"{error['ctx']['error']}"
    message = str(error["msg"])
    return f"{message[:1].lower()}{message[1:]} (got {given!r})."


def _siblings(model: type[BaseModel], place: Place) -> list[str]:
    """The keys that the table of an unknown key may have."""
    for part in place[:-1]:
        field = model.model_fields.get(part)
        if field is None:
            continue
        inner = _model_of(field.annotation)
        model = inner or model
    return list(model.model_fields)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_of(inner)
        if found is not None:
            return found
    return None
