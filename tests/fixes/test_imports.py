from __future__ import annotations

import importlib
import inspect
import sys

import pytest

from mpsdiag.fixes.imports import when_imported


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of modules; what they leave in the interpreter is taken away again."""
    monkeypatch.syspath_prepend(tmp_path)
    finders, modules = list(sys.meta_path), set(sys.modules)
    yield tmp_path
    sys.meta_path[:] = finders
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_the_action_runs_once_after_the_module(folder):
    (folder / "late_one.py").write_text("value = 1\n")
    seen = []
    when_imported("late_one", lambda: seen.append(sys.modules["late_one"].value))
    when_imported("late_one", lambda: seen.append("again"))
    assert seen == []
    module = importlib.import_module("late_one")
    assert seen == [1, "again"]
    importlib.reload(module)
    assert seen == [1, "again"]
    when_imported("late_one", lambda: seen.append("at once"))
    assert seen[-1] == "at once"


def test_the_module_is_as_if_nobody_had_watched(folder):
    (folder / "late_two").mkdir()
    (folder / "late_two" / "__init__.py").write_text("from late_two.inner import value\n")
    (folder / "late_two" / "inner.py").write_text("value = 2\n")
    when_imported("late_two", lambda: None)
    when_imported("late_two.inner", lambda: None)
    module = importlib.import_module("late_two")
    for name in ("late_two", "late_two.inner"):
        loaded = sys.modules[name]
        assert type(loaded.__loader__).__name__ == "SourceFileLoader"
        assert loaded.__spec__.loader is loaded.__loader__
        assert "value" in inspect.getsource(loaded)
    assert module.__path__ == [str(folder / "late_two")]


def test_a_module_waited_for_inside_its_own_import(folder):
    (folder / "late_three.py").write_text(
        "from mpsdiag.fixes.imports import when_imported\n"
        "seen = []\n"
        "when_imported('late_four', lambda: seen.append('four'))\n"
        "import late_four\n"
        "seen.append('three')\n"
    )
    (folder / "late_four.py").write_text("")
    assert importlib.import_module("late_three").seen == ["four", "three"]


def test_a_module_that_is_missing_or_fails_stays_so(folder):
    (folder / "late_broken.py").write_text("raise ValueError('its own')\n")
    seen = []
    when_imported("late_missing", lambda: seen.append(1))
    when_imported("late_broken", lambda: seen.append(1))
    with pytest.raises(ModuleNotFoundError, match="late_missing"):
        importlib.import_module("late_missing")
    with pytest.raises(ValueError, match="its own"):
        importlib.import_module("late_broken")
    assert seen == []
    (folder / "late_missing.py").write_text("")
    importlib.invalidate_caches()
    importlib.import_module("late_missing")
    assert seen == [1]


def test_what_the_action_raises_the_import_raises(folder):
    (folder / "late_five.py").write_text("")

    def fail():
        raise RuntimeError("not in place")

    when_imported("late_five", fail)
    with pytest.raises(RuntimeError, match="not in place"):
        importlib.import_module("late_five")
