import dataclasses
import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsdiag.errors import BadInput
from mpsdiag.serialization import dumps, jsonable, number, write_atomically


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
