"""The rules of the house that a program can check: names, sizes, rooms and floors."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import mpsdiag

PACKAGE = Path(mpsdiag.__file__).parent
LINES = 29_000
FILES_IN_A_ROOM = 15
SMALL = 40
COMMANDS = {"check", "bench", "trace", "report", "run", "train", "bisect", "env", "compare"}
NOT_IMPORTED = {
    "mpsdiag.__main__": "what `python -m mpsdiag` runs",
    "mpsdiag.benching.run.preload": "started as a script, by name",
    "mpsdiag.cli.compare": "a command",
    "mpsdiag.cli.env": "a command",
    "mpsdiag.cli.train": "a command",
    "mpsdiag.fixes.on_startup.sitecustomize": "Python itself imports it",
}
"""Small modules that stand alone for a reason that is not their size."""


# From the ground up; a file imports only from its own floor and those below.
FLOORS = (
    {
        "errors",
        "words",
        "serialization",
        "quiet",
        "progress",
        "environment",
        "device",
        "statistics",
        "release_environment",
        "installs",
        "escape",
    },
    {"findings"},
    {"sdpa"},
    {"emulation"},
    {"fixes"},
    {"probes"},
    {"inputs"},
    {"invariance"},
    {"trainers"},
    {"training"},
    {"scenario"},
    {"tracing"},
    {"checking"},
    {"benching"},
    {"reporting"},
    {"bisect"},
    {"cli", "__main__"},
)
FLOOR_OF = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def module_name(path):
    return ".".join(("mpsdiag", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
SIZES = {module_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}


def imported_by(tree):
    """Modules of the package that a module imports, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mpsdiag"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in TREES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in TREES)


IMPORTS = {name: set(imported_by(tree)) - {name} for name, tree in TREES.items()}


def room_of(module):
    return module.split(".")[1] if "." in module else "mpsdiag"


def twice(pairs):
    """Names that stand in more than one place."""
    places = defaultdict(set)
    for name, place in pairs:
        places[name].add(place)
    return {name: sorted(found) for name, found in places.items() if len(found) > 1}


def test_no_file_name_twice():
    pairs = ((path.stem, module_name(path)) for path in FILES if path.stem not in {"__init__", *COMMANDS})
    assert twice(pairs) == {}


def test_no_type_name_twice():
    pairs = ((node.name, name) for name, tree in TREES.items() for node in tree.body if isinstance(node, ast.ClassDef))
    assert twice(pairs) == {}


def test_no_room_with_more_files_than_one_can_take_in():
    rooms = defaultdict(int)
    for path in FILES:
        rooms[str(path.parent.relative_to(PACKAGE))] += path.stem != "__init__"
    assert {room: count for room, count in rooms.items() if count > FILES_IN_A_ROOM} == {}


def test_no_small_module_with_a_single_importer():
    importers = defaultdict(set)
    for name, found in IMPORTS.items():
        for target in found:
            importers[target].add(name)
    small = {
        path: SIZES[path]
        for path in map(module_name, (path for path in FILES if path.stem != "__init__"))
        if SIZES[path] < SMALL and len(importers[path]) <= 1 and path not in NOT_IMPORTED
    }
    assert small == {}


def test_nothing_is_imported_upward_and_so_there_is_no_circle_between_rooms():
    upward = {
        f"{name} imports {target}"
        for name, found in IMPORTS.items()
        for target in found
        if "mpsdiag" not in {room_of(name), room_of(target)} and FLOOR_OF[room_of(target)] > FLOOR_OF[room_of(name)]
    }
    assert upward == set()


def test_every_room_has_its_floor():
    assert {room_of(name) for name in TREES} - {"mpsdiag"} == set(FLOOR_OF)


def test_the_ground_floor_has_no_circle():
    ground = {name: {t for t in IMPORTS[name] if room_of(t) in FLOORS[0]} for name in TREES}
    done = set()
    waiting = {name for name in ground if room_of(name) in FLOORS[0]}
    while waiting:
        free = {name for name in waiting if ground[name] <= done}
        assert free, f"a circle among {sorted(waiting)}"
        done |= free
        waiting -= free


def test_the_package_keeps_within_its_budget():
    assert sum(SIZES.values()) <= LINES


def test_a_file_holds_one_idea_in_at_most_300_lines():
    assert {name: size for name, size in SIZES.items() if size > 300} == {}


def test_the_contributors_page_names_every_room_and_only_files_that_exist():
    page = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = set(re.findall(r"^\| `([a-z]+)/` \|", page, re.MULTILINE))
    assert rooms == {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    files = set(re.findall(r"`([a-z_]+/[a-z_/]+\.(?:py|toml))`", page)) - {"tests/test_house.py", "mpsdiag/__init__.py"}
    assert len(files) > 35
    assert {name for name in files if not (PACKAGE / name).is_file()} == set()
