"""Problems of a matrix as sentences: where the problem is, what it is, and the nearest valid word."""

import datetime as dt
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from mpsdiag.errors import BadInput, nearest

Model = TypeVar("Model", bound=BaseModel)
Place = tuple[int | str, ...]
"""Where something is: keys, and positions in lists. No type of a matrix is a union, so these are exactly pydantic's
locations."""

_WORD = re.compile(r"'([^']*)'")
_BOUNDS: Final[Mapping[str, tuple[str, str]]] = {
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
    "greater_than": ("above", "gt"),
    "less_than": ("below", "lt"),
}
_KINDS: Final[Mapping[str, str]] = {
    "int_": "should be a whole number",
    "finite_number": "should be a finite number",
    "float_": "should be a number",
    "too_short": "should have at least one value",
}
LONGEST: Final = 60
"""How many characters of a value a message repeats."""


def validated(model: type[Model], document: Any, where: Callable[[Place], str]) -> Model:
    """Make a model from a document. Raises BadInput with up to three problems in the message."""
    try:
        return model.model_validate(document)
    except ValidationError as problem:
        errors = problem.errors(include_url=False)
        parts = [f"{where(error['loc'])}: {_what(model, error)}" for error in errors[:3]]
        more = f" And {len(errors) - 3} more." if len(errors) > 3 else ""
        raise BadInput(" ".join(dict.fromkeys(parts)) + more) from problem


def shown(value: Any) -> str:
    """A value as a matrix file would write it, shortened if it is long."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, int) and abs(value) >= 10**LONGEST:
        return "a number of many digits"
    if isinstance(value, dict):
        return "a table"
    text = f"[{', '.join(map(shown, value))}]" if isinstance(value, list) else repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _what(model: type[BaseModel], error: Any) -> str:
    """One problem as a sentence."""
    kind, place, given = error["type"], error["loc"], shown(error["input"])
    key = next((part for part in reversed(place) if isinstance(part, str)), "matrix")
    if kind == "extra_forbidden":
        return f"unknown key {key!r}. {nearest(key, _siblings(model, place))}"
    if kind == "literal_error":
        word = error["input"] if isinstance(error["input"], str) else given
        words = _WORD.findall(str(error["ctx"]["expected"]))
        return f"unknown {key} '{word}'. {nearest(word, words)}"
    if kind == "value_error":
        return f"{error['ctx']['error']}"
    return f"{_plain(kind, place, key, given, error)} (got {given})."


def _plain(kind: str, place: Place, key: str, given: str, error: Any) -> str:
    """What a value of the wrong type or size should be."""
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return f"should be {words} {shown(error['ctx'][bound])}"
    if kind == "string_type":
        return f'write it as a text: {key} = "{given}"'
    if kind == "model_type":
        heading = f"[[{key}]]" if isinstance(place[-1], int) else f"[{key}]"
        return f"should be a table: write {heading} and its keys below it"
    if kind == "list_type":
        return f"should be a list of tables: write [[{key}]] above each"
    message = str(error["msg"])
    return next((words for start, words in _KINDS.items() if kind.startswith(start)), message[:1].lower() + message[1:])


def _siblings(model: type[BaseModel], place: Place) -> list[str]:
    """The keys that the table of an unknown key may have."""
    for part in place[:-1]:
        field = model.model_fields.get(str(part))
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        model = next((one for one in kinds if isinstance(one, type(BaseModel))), model)
    return list(model.model_fields)
