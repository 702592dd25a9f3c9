"""`mpsdiag env`: the machine, as a block to paste into an issue; works even if nothing else does."""

from collections.abc import Callable
from typing import Any, TypeVar

from mpsdiag.cli import options, output
from mpsdiag.errors import first_line

T = TypeVar("T")


def env(json: options.Json = False) -> None:
    """Describe this machine for an issue. Home folder, user and host name and tokens are left out. Exit code: 0."""
    from mpsdiag import installs
    from mpsdiag.serialization import dumps

    broken = installs.broken()
    found = _or_none("this machine", broken, lambda: _gathered(broken))
    if found is None:
        document = {**installs.facts(), "broken": broken}
        lines = [f"- {name}: {value}" for name, value in document.items() if name not in {"versions", "broken"}]
        lines += [f"- {name}: {value}" for name, value in document["versions"].items() if value]
        lines += [f"- {name} fails: {what}" for name, what in broken.items()]
        text = "\n".join(map(output.line, lines)) + "\n"
    else:
        from mpsdiag.environment import to_markdown
        from mpsdiag.escape import md_text

        document, text = found.model_dump(), to_markdown(found, md_text)
    output.show_document(dumps({"schema": 1, **document}, indent=2) if json else text)


def _gathered(broken: dict[str, str]) -> Any:
    from mpsdiag import device
    from mpsdiag.environment import default_attention, gather

    found = gather(
        _or_none("devices", broken, device.accelerators), _or_none("default attention", broken, default_attention)
    )
    return found.model_copy(update={"broken": broken or None})


def _or_none(what: str, broken: dict[str, str], ask: Callable[[], T]) -> T | None:
    """The answer to a question; None if it cannot be answered, with the reason in `broken`."""
    try:
        return ask()
    except Exception as problem:  # noqa: BLE001 - a broken library may raise anything
        broken.setdefault(what, f"{type(problem).__name__}: {first_line(problem)}")
        return None
