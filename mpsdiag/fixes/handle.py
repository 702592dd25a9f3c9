"""What every way of putting a mode in place returns: the way back."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Handle:
    """Removes a mode again, once, by `remove()` or at the end of a `with` block.

    `name` is the attention mode that was put in place. `unreached` lists names in modules, such as
    `library.attention.sdpa`, that were bound to torch's own function before and so go on without the mode.
    """

    def __init__(self, name: str, undo: Callable[[], None], unreached: tuple[str, ...] = ()) -> None:
        self.name = name
        self.unreached = unreached
        self._undo: Callable[[], None] | None = undo
        self._lock = threading.Lock()

    @property
    def removed(self) -> bool:
        """Whether `remove()` has been called."""
        return self._undo is None

    def remove(self) -> None:
        """Put back what was there before. Calling it again does nothing."""
        with self._lock:
            undo, self._undo = self._undo, None
        if undo is not None:
            undo()

    def __enter__(self) -> Handle:  # noqa: PYI034 - Self is not in the typing of Python 3.10
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<Handle of {self.name}, {'removed' if self.removed else 'in place'}>"
