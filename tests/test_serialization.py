import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsdiag import serialization
from mpsdiag.errors import BadInput
from mpsdiag.serialization import dumps, jsonable, number, read_file, require_files, write_atomically


@dataclasses.dataclass
class Losses:
    train: float
    evaluation: list[float]


def refuse(constant):
    raise AssertionError(f"bare {constant} is not JSON")


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_every_float_survives_strict_json(value):
    back = number(json.loads(dumps(value), parse_constant=refuse))
    assert back == value or (math.isnan(back) and math.isnan(value))


def test_nested_values_become_plain_json():
    text = dumps({"losses": Losses(1.5, [math.nan, -math.inf]), "path": os.devnull, 3: (True, None)})
    assert json.loads(text, parse_constant=refuse) == {
        "losses": {"train": 1.5, "evaluation": ["nan", "-inf"]},
        "path": os.devnull,
        "3": [True, None],
    }


@pytest.mark.parametrize("value", ["NaN", "1.0", True, None, []])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="not a number"):
        number(value)


def test_jsonable_writes_unknown_objects_as_text():
    assert jsonable(range(3)) == "range(0, 3)"


def test_a_file_is_replaced_whole(tmp_path):
    target = tmp_path / "deep" / "summary.json"
    write_atomically(target, "old")
    write_atomically(target, "new")
    assert target.read_text() == "new"
    assert [entry.name for entry in target.parent.iterdir()] == ["summary.json"]


def test_a_failed_replacement_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    target = tmp_path / "summary.json"
    write_atomically(target, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match="No space left on device"):
        write_atomically(target, "new")
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"Cannot write .*report\.md.*Choose a folder"):
        write_atomically(tmp_path / "file" / "report.md", "text")


def test_a_large_text_is_written_in_pieces_and_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "PIECE", 3)
    for text in ("", "a", "ab\ncdefg\n\nü\udcc3\udcbc\nlast", "no line feed at all\n"):
        write_atomically(tmp_path / "a.txt", text)
        found = (tmp_path / "a.txt").read_bytes().decode()
        assert found == text.replace("\udcc3\udcbc", "ü")


def test_a_pipe_is_written_into_and_stays_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomically(pipe, "text")
        assert os.read(reader, 100) == b"text"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_pipe_that_nobody_reads_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="nobody reads this pipe"):
        write_atomically(tmp_path / "pipe", "text")


def test_a_file_that_is_too_large_to_be_read_whole_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.touch()
    os.truncate(path, serialization.LARGEST_FILE + 1)
    for read in (lambda: read_file(path), lambda: require_files(tmp_path)):
        with pytest.raises(BadInput, match=r"config\.json is larger than 2 GiB"):
            read()
    assert read_file(path, 3) == b"\0\0\0"


@pytest.fixture
def nothing_replaced(monkeypatch):
    """What must not be replaced is not, even by a mistake in the code: root may replace a device."""

    def refuse(*_, **__):
        raise AssertionError("a file to rename over it")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)


@pytest.mark.usefixtures("nothing_replaced")
def test_a_device_is_written_into_and_its_link_stays(tmp_path):
    link = tmp_path / "null"
    link.symlink_to(os.devnull)
    write_atomically(link, "text")
    assert link.is_symlink()
    assert link.is_char_device()


@pytest.mark.usefixtures("nothing_replaced")
def test_what_a_device_does_not_take_is_the_usual_sentence(tmp_path):
    if not Path("/dev/full").is_char_device():
        pytest.skip("no device that is always full")
    link = tmp_path / "full"
    link.symlink_to("/dev/full")
    with pytest.raises(BadInput, match=r"Cannot write .*full: No space left on device"):
        write_atomically(link, "text")
    assert link.is_symlink()


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link_and_its_file_is_replaced(tmp_path, there):
    target, link = tmp_path / "deep" / "target.md", tmp_path / "link.md"
    link.symlink_to(target)
    if there:
        write_atomically(target, "old")
    write_atomically(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_standard_output_that_is_a_file_is_continued_not_replaced(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("before\n")
    program = (
        "import sys; from pathlib import Path; from mpsdiag.serialization import write_atomically; "
        "write_atomically(Path(sys.argv[1]), 'text')"
    )
    with kept.open("a") as stream:
        subprocess.run([sys.executable, "-c", program, "/dev/fd/1"], stdout=stream, check=True)
    assert kept.read_text() == "before\ntext"


def test_a_name_that_the_locale_could_not_decode_is_written_as_it_was_typed(tmp_path):
    write_atomically(tmp_path / "a.json", dumps({"folder": "\udcc3\udcbc", "bad": "\udcff", "lone": "\ud800"}))
    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert found["bad"] == found["lone"] == "?"
    write_atomically(tmp_path / "a.json", dumps({"folder": "\udcc3\udcbc", "bad": "\udcff"}))
    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert found == {"folder": "ü", "bad": "\ufffd"}
