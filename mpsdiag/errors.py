"""Errors on the user's side, each as one sentence that names the problem and says what to do."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class MpsdiagError(Exception):
    """Base of every error the command line prints as one sentence, without a traceback."""

    exit_code = 2
    """Of the process when this error reaches the command line."""


class BadInput(MpsdiagError):  # noqa: N818 - it names the input, not a failure of ours
    """An argument, file or name that cannot be used as given. Exit code 2."""


class CannotDecide(MpsdiagError):  # noqa: N818 - an outcome with its own exit code
    """The question cannot be answered here, for example because the device is unusable. Exit code 3."""

    exit_code = 3


def first_line(problem: BaseException, longest: int = 200) -> str:
    """An exception's message as part of a sentence: its first line without the full stop, or its type."""
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:longest].rstrip(".")


def close_to(word: str, choices: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The choice whose spelling is closest to a word; None if none is close."""
    return next(iter(difflib.get_close_matches(word, list(choices), n=1, cutoff=cutoff)), None)


def path_problem(problem: OSError, path: object = None) -> BadInput:
    """What is wrong with a path, as one sentence: no permission, a name that is too long, a loop of links."""
    named = problem.filename if path is None else path
    text = str(named.decode("utf-8", "replace") if isinstance(named, bytes) else named)
    text = text if len(text) <= 200 else f"{text[:200]}..."
    what = problem.strerror or type(problem).__name__
    return BadInput(f"Cannot use {text!r}: {what}." if named is not None else f"The system refused: {what}.")


@contextmanager
def file_errors(what: str, advice: str = "", error: type[MpsdiagError] = BadInput) -> Iterator[None]:
    """Raise what the system refuses in the block as one sentence: `what` ("Cannot read x"), the reason, the advice."""
    try:
        yield
    except OSError as problem:
        raise error(f"{what}: {problem.strerror}. {advice}".rstrip()) from problem


def nearest(word: str, choices: Iterable[str]) -> str:
    """List the choices, the nearest first: `Did you mean 'eager'? Choose from: ...`."""
    known = list(choices)
    close = close_to(word, known)
    hint = f"Did you mean '{close}'? " if close else ""
    return f"{hint}Choose from: {', '.join(known)}."


def one_of(kind: str, word: str, choices: Iterable[str]) -> str:
    """Return `word` if it is one of `choices`. Raises BadInput, which suggests the nearest, if it is none of them."""
    known = list(choices)
    if word in known:
        return word
    raise BadInput(f"Unknown {kind} '{word}'. {nearest(word, known)}")
