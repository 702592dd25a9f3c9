"""Runs an action as soon as a module has been imported."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def when_imported(module: str, action: Callable[[], None]) -> None:
    """Run `action` once `module` is there: now if it is fully imported, otherwise right after its import."""
    loaded = sys.modules.get(module)
    if loaded is not None and not getattr(loaded.__spec__, "_initializing", False):
        action()
        return
    waiting = next((finder for finder in sys.meta_path if isinstance(finder, _Waiting)), None)
    if waiting is None:
        waiting = _Waiting()
        sys.meta_path.insert(0, waiting)
    actions = waiting.actions.setdefault(module, [])
    if action not in actions:
        actions.append(action)


class _Waiting(MetaPathFinder):
    """Finds nothing itself: it lets the other finders find an awaited module, and watches its loading."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Callable[[], None]]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname not in self.actions:
            return None
        actions = self.actions.pop(fullname)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            self.actions[fullname] = actions
            return None
        spec.loader = _Watching(spec.loader, actions)
        return spec


class _Watching(Loader):
    """Loads like the loader it replaces, then runs the actions and removes itself."""

    def __init__(self, loader: Loader, actions: list[Callable[[], None]]) -> None:
        self._loader = loader
        self._actions = actions

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        for action in self._actions:
            action()
