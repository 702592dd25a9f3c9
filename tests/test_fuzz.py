"""Commands, options, files and journals that nobody meant: one sentence, a code of the table, printable text.

MPSDIAG_FUZZ=2500 pytest --timeout 0 tests/test_fuzz.py (`make fuzz`) tries that many of each kind.
"""

import contextlib
import io
import os
import sys
from pathlib import Path
from unittest import mock

import pytest
import typer
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mpsdiag.cli import main
from mpsdiag.cli.main import app

COMMAND = typer.main.get_command(app)  # made once, not for each of thousands
EXAMPLES = int(os.environ.get("MPSDIAG_FUZZ", "40"))
BOUNDED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SAMPLES = [
    path.read_bytes()
    for path in (
        Path(__file__).parent / "data" / "every_end.jsonl",
        Path(__file__).parent / "benching" / "data" / "schema_1.jsonl",
        Path(__file__).parent / "benching" / "data" / "schema_2.jsonl",
    )
]
PIECES = [b"1e308", b"-1", b"null", b"[" * 2000, b"\xff", b"\n"]
HOSTILE = ["", " ", "\x1b[31mred", "\x1b]0;title\x07", "a\nb", "\u202egnp", "-1", "nan", "1e999", "9" * 400]
HOSTILE += ["../" * 50, "x" * 5000, "\ud800", "\t", "{}", "[[[[", "none", "0x10", "1_0", "2.99"]
WORDS = st.sampled_from(HOSTILE) | st.text(st.characters(exclude_characters="\0"), max_size=30)
NUMBERS = {
    "check": ["--level", "--max-length", "--seed", "--emulate-macos"],
    "trace": ["--max-length", "--seed", "--batch-size", "--eval-max-batches", "--max-steps", "--learning-rate"],
    "bench": ["--max-length", "--seed", "--batch-size", "--max-steps", "--rounds", "--precision", "--threads"],
}
NAMES = {
    "check": ["--padding-side", "--dtype", "--device", "--emulate"],
    "trace": ["--padding-side", "--dtype", "--device", "--emulate", "--attn-implementation"],
    "bench": ["--padding-side", "--dtype", "--device", "--emulate", "--attn-implementation", "--trainer"],
}
KEYS = ["name", "baseline", "dataset", "rounds", "max_rounds", "precision", "time_limit", "max_cells", "threads"]
KEYS += ["axes.model", "axes.seed", "axes.emulate", "axes.padding_side", "axes.attention", "axes.max_length", "nosuch"]
VALUES = st.sampled_from(
    ["1", "-1", "1e308", "nan", "inf", "true", '"x"', "[]", "{}", "[1, 'a']", "1979-05-27", "9" * 30, '"\\u001b[31m"']
)


def outcome(*words):
    """Exit code, stdout and stderr of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["mpsdiag", *words]),
        mock.patch.object(sys.modules["mpsdiag.cli.main"], "app", COMMAND),
        pytest.raises(SystemExit) as end,
    ):
        main(list(words))
    return end.value.code or 0, out.getvalue(), err.getvalue()


def check(found, codes):
    code, out, err = found
    assert code in codes, err
    assert "Unexpected" not in err
    assert "Traceback" not in err
    for text in (out, err):
        bad = {one for one in text if not one.isprintable() and one != "\n"}
        assert not bad, text


@BOUNDED
@given(
    st.sampled_from(SAMPLES),
    st.floats(0, 1),
    st.integers(0, 200),
    st.binary(max_size=20) | st.sampled_from(PIECES),
    st.sampled_from(["terminal", "markdown", "csv", "json"]),
)
def test_no_journal_breaks_a_report(tmp_path, sample, place, gone, middle, form):
    cut = int(place * len(sample))
    path = tmp_path / "journal.jsonl"
    path.write_bytes(sample[:cut] + middle + sample[cut + gone :])
    check(outcome("report", str(path), "--format", form), {0, 2})


@BOUNDED
@example(b"")
@example(b"[" * 100_000)
@example(b'{"schema": "2", "kind": "header"}\n')
@example(b'{"schema": 99.0, "kind": "header"}\n')
@example(b'{"schema": true, "kind": "header"}\n')
@given(st.binary(max_size=200))
def test_no_bytes_break_a_report(tmp_path, data):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(data)
    check(outcome("report", str(path)), {2})


@BOUNDED
@given(st.lists(st.tuples(st.sampled_from(KEYS), VALUES), max_size=4), st.binary(max_size=10))
def test_no_matrix_file_breaks_a_dry_run(tmp_path, pairs, tail):
    path = tmp_path / "matrix.toml"
    path.write_bytes("\n".join(f"{key} = {value}" for key, value in pairs).encode() + b"\n" + tail)
    check(outcome("bench", str(path), "--dry-run", "--device", "cpu"), {0, 2})


@BOUNDED
@given(st.data())
def test_no_option_breaks_a_command(data):
    command = data.draw(st.sampled_from(sorted(NUMBERS)))
    option = data.draw(st.sampled_from(NUMBERS[command] + NAMES[command]))
    value = data.draw(WORDS)
    # Whatever else happens, this ends it before anything is computed.
    stop = ["--dry-run", "--device", "cpu"] if command == "bench" else ["--model", "./no/such/model"]
    check(outcome(command, f"{option}={value}", *stop), {0, 2})


@BOUNDED
@given(st.lists(WORDS, min_size=1, max_size=3))
def test_no_words_break_the_command_line(words):
    check(outcome(*words), {0, 2})


TRAIN = ["--max_length", "--max_steps", "--seed", "--learning_rate", "--num_train_epochs", "--warmup_steps"]
TRAIN += ["--per_device_train_batch_size", "--validation_fraction", "--pad_to_multiple_of", "--logging_steps"]
TRAIN += ["--mode", "--task", "--dtype", "--padding_side", "--device", "--emulate", "--attn_implementation"]
TRAIN += ["--optim", "--lr_scheduler_type", "--eval_strategy", "--report_to", "--dataset", "--nosuch"]
TRAIN += ["--resume_from_checkpoint", "--text_column", "--bf16", "--fsdp", "--deepspeed", "--accelerator_config"]


@BOUNDED
@given(st.sampled_from(TRAIN), WORDS)
def test_no_option_breaks_a_training(tmp_path, option, value):
    # No such model: whatever is taken ends before anything is trained.
    words = [f"{option}={value}", "--model", "./no/such/model", "--output_dir", str(tmp_path)]
    check(outcome("train", *words), {0, 2})


@BOUNDED
@given(st.sampled_from(["", "-m", "--fix", "--emulate", "--emulate-macos"]), WORDS, WORDS)
def test_no_words_break_a_run(option, value, target):
    words = [one for one in (option, value, target) if one]
    with mock.patch("mpsdiag.fixes.script.become"):
        check(outcome("run", *words), {0, 2})


@BOUNDED
@given(st.lists(WORDS | st.sampled_from(["--json", "--markdown"]), max_size=2), WORDS)
def test_no_words_and_no_variable_break_env(words, value):
    value = value.encode("utf-8", "ignore").decode()  # what a variable can hold
    with mock.patch.dict(os.environ, {"PYTORCH_MPS_FAST_MATH": value, "HF_MPSDIAG_TEST": value}):
        check(outcome("env", *words), {0, 2})
