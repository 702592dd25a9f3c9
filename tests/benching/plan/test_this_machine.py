import pytest

from mpsdiag.benching.plan import this_machine as module
from mpsdiag.benching.plan.this_machine import fingerprint


@pytest.fixture(autouse=True)
def forgotten():
    fingerprint.cache_clear()


def test_what_is_no_path_counts_for_nothing(tmp_path):
    assert fingerprint(("tiny-gpt2", "synthetic")) is None
    (tmp_path / "a.txt").write_text("a")
    one = fingerprint((str(tmp_path / "a.txt"),))
    assert len(one) == 16
    assert fingerprint((str(tmp_path / "a.txt"), "no/such/thing")) != one  # which name is which matters


def test_a_folder_is_what_its_files_are_called_and_hold_wherever_it_is(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "deep" / "weights").write_bytes(b"123")
    here, there = ((str(tmp_path / name),) for name in ("here", "there"))
    assert fingerprint(here) == fingerprint(there)
    (tmp_path / "there" / "deep" / "weights").rename(tmp_path / "there" / "weights")
    fingerprint.cache_clear()
    assert fingerprint(here) != fingerprint(there)


@pytest.mark.parametrize("place", [0, 9])
def test_of_a_large_file_both_ends_are_read(tmp_path, monkeypatch, place):
    monkeypatch.setattr(module, "WHOLE", 4)
    monkeypatch.setattr(module, "END", 3)
    path = tmp_path / "weights"
    path.write_bytes(b"0123456789")
    before = fingerprint((str(path),))
    changed = bytearray(b"0123456789")
    changed[place] = 0
    path.write_bytes(changed)
    fingerprint.cache_clear()
    assert fingerprint((str(path),)) != before
