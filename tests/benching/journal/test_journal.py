import json
import resource
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsdiag.benching.journal import journal as migrations
from mpsdiag.benching.journal.journal import parse_journal, read_journal
from mpsdiag.benching.journal.record import Header, Record, Timing
from mpsdiag.benching.journal.writer import JournalFull, JournalWriter, set_aside
from mpsdiag.errors import BadInput
from mpsdiag.scenario.scenario import OLD_NAMES, Measured, Scenario
from mpsdiag.serialization import dumps

DATA = Path(__file__).parents[1] / "data"
NAN = float("nan")


def record(number, status="ok", round_=0, **fields):
    return Record(
        key=f"{number:016x}",
        round=round_,
        cell=Scenario(seed=number),
        status=status,
        started="now",
        seconds=1.5,
        **fields,
    )


def write(path, header, *records):
    with JournalWriter(path, header) as journal:
        for one in records:
            journal.append(one)


def lines(path):
    return path.read_bytes().split(b"\n")


def test_what_is_written_is_read(tmp_path, header):
    path = tmp_path / "deep" / "journal.jsonl"
    one = record(1, "nan", measured=Measured(eval_loss=NAN, eval_losses=[1.0, NAN, float("inf")]), log_tail="ä\n|")
    write(path, header, one, record(2, round_=3))
    journal = read_journal(path)
    assert journal.header == header
    assert [r.round for r in journal.records] == [0, 3]
    assert journal.warnings == []
    assert dumps(journal.records[0]) == dumps(one)  # NaN compares as text
    assert read_journal(path.parent).path == path


def test_every_line_carries_its_schema_and_is_strict_json(tmp_path, header):
    path = tmp_path / "journal.jsonl"
    write(path, header, record(1, measured=Measured(eval_loss=NAN)))

    def refuse(word):
        raise AssertionError(word)

    for line in lines(path)[:-1]:
        assert json.loads(line, parse_constant=refuse)["schema"] == 3


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_dropped_with_a_warning_and_mended_by_the_next_writer(tmp_path, header, cut):
    path = tmp_path / "journal.jsonl"
    write(path, header, record(1), record(2))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    if cut == 1:  # only the line feed is missing: the record is whole
        assert len(read_journal(path).records) == 2
        assert read_journal(path).warnings == []
    else:
        journal = read_journal(path)
        assert [r.cell.seed for r in journal.records] == [1]
        assert "line 3 is torn" in journal.warnings[0]
    write(path, header, record(3))
    journal = read_journal(path)
    assert journal.warnings == []
    assert [r.cell.seed for r in journal.records] == ([1, 2, 3] if cut == 1 else [1, 3])


def test_other_bad_lines_are_left_out_by_number(tmp_path, header):
    path = tmp_path / "journal.jsonl"
    write(path, header, record(1), record(2), record(3), record(4))
    parts = lines(path)
    parts[2] = b"\x00\xff rubbish"
    parts[3] = parts[3].replace(b'"status": "ok"', b'"status": "fine"')
    path.write_bytes(b"\n".join([*parts[:-1], parts[0], b"[1, 2]", b""]))
    journal = read_journal(path)
    assert [r.cell.seed for r in journal.records] == [1, 4]
    assert [warning.split(" is ")[0].rsplit(" ", 1)[1] for warning in journal.warnings] == ["3", "4", "6", "7"]
    assert "status" in journal.warnings[1]
    assert "second header" in journal.warnings[2]


@pytest.mark.parametrize("seconds", [0.0, -1.0, "nan", "inf", 1e308])
def test_durations_that_cannot_be_are_left_out(tmp_path, header, seconds):
    path = tmp_path / "journal.jsonl"
    write(path, header, record(1), record(1, round_=1, timing=Timing(device="cpu", warmup=0, eval_step=[0.5])))
    path.write_text(path.read_text().replace("[0.5]", json.dumps([seconds])))
    journal = read_journal(path)
    assert [r.round for r in journal.records] == [0]
    assert "line 3 is not a record and was left out (timing.eval_step.0" in journal.warnings[0]


def test_the_newest_record_of_a_round_counts(tmp_path, header):
    path = tmp_path / "journal.jsonl"
    write(path, header, record(1, "timeout"), record(2), record(1, "ok"))
    assert [(r.cell.seed, r.status) for r in read_journal(path).records] == [(2, "ok"), (1, "ok")]


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(data):
    header = dumps(Header(mpsdiag="0", command="", created="").model_dump(by_alias=True)).encode()
    journal = parse_journal(header + b"\n" + data, "journal")
    assert journal.records == []
    with suppress(BadInput):  # the one exception it may raise
        parse_journal(data, "journal")


def test_schema_1_is_migrated():
    """The sample is what that version wrote, byte for byte."""
    journal = read_journal(DATA / "schema_1.jsonl")
    assert journal.warnings == []
    assert [(r.status, r.cell.attn_implementation, r.round) for r in journal.records] == [
        ("nan", "sdpa", 0),
        ("ok", "safe_sdpa", 0),
        ("ok", "sdpa", 1),
        ("ok", "safe_sdpa", 1),
    ]
    versions = {name: journal.header.environment["versions"][name] for name in ("torch", "transformers")}
    for record in journal.records:
        assert record.key == record.cell.key(versions)  # so that bench resumes it
        assert (record.cell.warmup, record.cell.repeats, record.cell.threads) == (2, 5, 1)
        if record.timing is not None:  # what the line itself says about it
            assert (record.timing.warmup, len(record.timing.eval_step), record.timing.threads) == (2, 5, 1)


def test_schema_2_is_migrated():
    """The sample is what that version wrote, byte for byte but for the folder's name."""
    lines = [json.loads(line) for line in (DATA / "schema_2.jsonl").read_text().splitlines()]
    journal = read_journal(DATA / "schema_2.jsonl")
    assert journal.warnings == []
    assert len(journal.records) == len(lines) - 1 == 4
    versions = {name: journal.header.environment["versions"][name] for name in ("torch", "transformers")}
    for record, line in zip(journal.records, lines[1:], strict=True):
        old = line["cell"]
        known = {OLD_NAMES.get(name, name): value for name, value in old.items()}
        assert {name: value for name, value in record.cell.model_dump().items() if name in known} == known
        assert record.key == record.cell.key(versions) != line["key"]  # so that bench resumes it
        assert (record.status, record.reason) == (line["status"], line["reason"])
        new = json.loads(dumps(record.measured))
        assert {name: new[name] for name in line["measured"]} == line["measured"]  # nothing of it is lost
        assert json.loads(dumps(record.timing)) == line["timing"]
        if record.round == 0:
            assert record.measured.status == record.status  # what follows from the numbers is what was written


def test_a_migrated_line_without_versions_keeps_its_key():
    lines = (DATA / "schema_1.jsonl").read_text().splitlines()
    document = {**json.loads(lines[1]), "environment": {}}
    [record] = parse_journal(f"{lines[0]}\n{json.dumps(document)}\n".encode(), "journal").records
    assert record.key == document["key"]


def test_there_is_a_step_from_every_older_schema():
    assert sorted(migrations.STEPS) == list(range(1, migrations.SCHEMA))


def test_a_newer_schema_is_refused_with_a_sentence(tmp_path, header):
    path = tmp_path / "journal.jsonl"
    write(path, header, record(1))
    path.write_bytes(path.read_bytes() + b'{"schema": 4, "kind": "cell"}\n')
    with pytest.raises(BadInput, match=r"line 3 was written by a newer mpsdiag \(schema 4; this one reads up to 3\)"):
        read_journal(path)


@pytest.mark.parametrize("text", ["", "\n", "hello\n", "{}\n", '{"schema": 2, "kind": "cell"}\n', "[]\n"])
def test_what_is_no_journal_is_refused(tmp_path, text):
    path = tmp_path / "journal.jsonl"
    path.write_text(text)
    with pytest.raises(BadInput, match="not an mpsdiag journal"):
        read_journal(path)


def test_a_missing_journal_is_a_sentence(tmp_path):
    with pytest.raises(BadInput, match="There is no journal at"):
        read_journal(tmp_path)


def test_a_second_writer_is_told_who_writes(tmp_path, header):
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path, header), pytest.raises(BadInput, match=r"Another mpsdiag \(process \d+\) is writing"):
        JournalWriter(path, header)
    write(path, header, record(1))  # and the lock is gone with the first


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path, header):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="Cannot write into"):
        JournalWriter(tmp_path / "file" / "deeper" / "journal.jsonl", header)


def test_set_aside_keeps_every_older_journal(tmp_path, header):
    path = tmp_path / "journal.jsonl"
    assert set_aside(path) is None
    for number in (1, 2):
        write(path, header, record(number))
        assert set_aside(path) == tmp_path / f"journal.{number}.jsonl"
    assert [r.cell.seed for r in read_journal(tmp_path / "journal.1.jsonl").records] == [1]


@contextmanager
def file_size_limit(size):
    """The kernel refuses to let any file of this process grow beyond `size` bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 1, 100, 400])
def test_a_full_disk_never_corrupts_the_journal(tmp_path, header, room):
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path, header) as journal:
        journal.append(record(1))
        size = path.stat().st_size
        with file_size_limit(size + room), pytest.raises(JournalFull, match="safe in it") as caught:
            journal.append(record(2))
        assert caught.value.exit_code == 3
        assert path.stat().st_size == size
        journal.append(record(3))  # room again
    assert [r.cell.seed for r in read_journal(path).records] == [1, 3]
    assert read_journal(path).warnings == []


@pytest.mark.parametrize("schema", ['"3"', "3.0", "true", "null", "[]"])
def test_a_schema_that_is_no_integer_is_refused(tmp_path, header, schema):
    path = tmp_path / "journal.jsonl"
    write(path, header, record(1), record(2))
    first, second, third = path.read_text().splitlines()
    bad = second.replace('"schema": 3', f'"schema": {schema}')
    path.write_text(f"{first}\n{bad}\n{third}\n")
    journal = read_journal(path)
    assert [r.cell.seed for r in journal.records] == [2]
    assert "line 2 is not a record" in journal.warnings[0]
