"""Thirty shapes of secrets through the one door, and through every format that is made to be shared."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsdiag.escape import redact, redact_all, scrub, without_home

PERSON = {"home": "/Users/ada", "user": "ada", "host": "adas-mac.local"}


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("/Users/ada/models/gpt2", "~/models/gpt2"),
        ("run by ada on adas-mac.local", "run by <user> on <host>"),
        ("adas-mac", "<host>"),
        ("adagrad stays, nevada too", "adagrad stays, nevada too"),
        ("https://ada:secret@hub.example", "https://<login>@hub.example"),
        ("hf_abcdefghijklmnop", "<token>"),
    ],
)
def test_personal_words_are_replaced_and_others_kept(text, clean):
    assert scrub(text, **PERSON) == clean


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_home_folder_survives(before, after):
    assert "/Users/ada" not in scrub(f"{before}/Users/ada{after}", **PERSON)


SECRET = "Zq9XvT3bLm8KpW2rYc5N"  # noqa: S105 - made up
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
SHAPES = [
    f"hf_{SECRET}",
    f"sk-{SECRET}",
    f"api_{SECRET}",
    f"ghp_{SECRET}",
    f"gho_{SECRET}",
    f"github_pat_{SECRET}",
    f"glpat-{SECRET}",
    f"npm_{SECRET}",
    f"pypi-{SECRET}",
    f"xoxb-{SECRET}",
    f"AIza{SECRET}{SECRET}",
    "AKIAIOSFODNN7EXAMPLE",
    "ASIAIOSFODNN7EXAMPLE",
    JWT,
    f"https://ada:{SECRET}@hub.example/path",
    f"ada:{SECRET}@hub.example",
    f"https://hub.example/file?token={SECRET}",
    f"https://hub.example/file?a=1&X-Amz-Signature={SECRET}",
    f"https://hub.example/file?access_key={SECRET}&b=2",
    f"https://hub.example/cb?code={SECRET}",
    f"Authorization: Bearer {SECRET}",
    f"authorization: basic {SECRET}==",
    f"HF_TOKEN={SECRET}",
    f"password: {SECRET}",
    f"api_key = '{SECRET}'",
    f'{{"access_key": "{SECRET}"}}',
    f"Set-Cookie: {SECRET}",
    f"WANDB_API_KEY={SECRET}",
    f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
    f"mpsdiag train --hub_token {SECRET} --max_steps 1",
    f"script.py --api-key '{SECRET}'",
    f"Authorization: token {SECRET}",
    f"Cookie: session={SECRET}; id={SECRET}",
    f"https://hooks.slack.com/services/T000/B000/{SECRET}",
    f"ya29.{SECRET}{SECRET}",
    f"SG.{SECRET}.{SECRET}",
    f"AGE-SECRET-KEY-1{SECRET}",
    f"dckr_pat_{SECRET}",
    f"PGPASSWORD={SECRET}",
    f"DefaultEndpointsProtocol=https;AccountKey={SECRET}==;",
    f"/var/folders/ab/{SECRET}/T/x",
    "grace.hopper@navy.example.mil",
    "/private/home/grace/x",
    "/mnt/c/Users/grace/x",
    "/home/grace/models/gpt2",
    "/Users/grace/models/gpt2",
    "C:\\Users\\grace\\models",
]
GIVEN_AWAY = (SECRET, "AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE", "eyJhbGci", "dozjgNry", "grace")


def clean(text):
    return not any(word in text for word in GIVEN_AWAY)


@pytest.mark.parametrize("secret", SHAPES)
@pytest.mark.parametrize("frame", ["{}", "cannot load {} (not found)", "'{}'", "first\n{}\nlast"])
def test_every_shape_is_taken_out_wherever_it_stands(secret, frame):
    assert clean(redact(frame.format(secret)))


@pytest.mark.parametrize(
    "text",
    [
        "the first real token label is read from a fully masked row",
        "pad_token_id=50256 eos_token='<|endoftext|>' num_tokens=1024",
        "12 of 24 cells, token: 8",
        "mpsdiag check --pad-token something --max-length 128 --padding-side left",
        "script.py --num-tokens 1024 --tokenizer some/model --token-type ids",
        "safe_sdpa.eval_time > 1.05 * sdpa.eval_time",
        "model 'org/name' at ./models/gpt2, line 3: TypeError",
        "https://github.com/pytorch/pytorch/issues/12345?q=1",
        "tiny-gpt2 + standard, left: ok",
    ],
)
def test_ordinary_sentences_stay_as_they_are(text):
    assert scrub(text, **PERSON) == text


def test_names_that_many_machines_share_are_no_names():
    assert scrub("the root cause of user input", home="/root", user="root", host="localhost") == (
        "the root cause of user input"
    )


def test_a_path_in_the_home_folder_can_be_used_without_naming_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/grace")
    assert without_home("/home/grace/models/gpt2") == "~/models/gpt2"
    assert without_home("/home/grace") == "~"
    assert without_home("/home/graceland/x") == "/home/graceland/x"
    assert without_home("org/name") == "org/name"


@pytest.mark.parametrize("secret", SHAPES)
def test_no_format_of_a_report_and_no_journal_gives_it_away(secret, monkeypatch, tmp_path):
    from mpsdiag.benching.journal.journal import parse_journal
    from mpsdiag.benching.journal.record import Header, Job
    from mpsdiag.benching.journal.writer import JournalWriter
    from mpsdiag.reporting.formats.cells import parquet
    from mpsdiag.reporting.formats.export import text_of
    from mpsdiag.reporting.story.report import assemble
    from mpsdiag.scenario.scenario import Scenario

    monkeypatch.setenv("HOME", "/home/grace")
    cell = Scenario(model="/home/grace/models/gpt2", dataset="/home/grace/data.txt")
    ended = {"status": "error", "reason": f"cannot: {secret}", "log_tail": f"log\n{secret}"}
    header = Header(mpsdiag="0", command="mpsdiag bench", created="now")
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path, header) as journal:
        journal.append(Job(key="0" * 16, cell=cell, log="").record(**ended))
        text = path.read_text()
        assert clean(text)
        # An older journal, in which it still stands:
        line = json.loads(text.splitlines()[1])
        line["reason"] = line["log_tail"] = secret
        line["cell"]["model"] = "/home/grace/models/gpt2"
        old = parse_journal(f"{text.splitlines()[0]}\n{json.dumps(line)}\n".encode(), "journal")
    for form in ("terminal", "markdown", "html", "csv", "json"):
        assert clean(text_of(assemble([parse_journal(text.encode(), "journal")]), form)), form
        assert clean(text_of(assemble([old]), form)), form
    assert clean(parquet(assemble([old])).decode("latin-1"))


@pytest.mark.parametrize("secret", SHAPES)
def test_no_block_of_markdown_gives_it_away(secret):
    """Whatever `check --markdown` and `trace --markdown` print goes through these."""
    from mpsdiag.escape import md_block, md_cell, md_text

    for door in (md_text, md_cell, md_block):
        assert clean(door(f"cannot load: {secret}, sorry"))


def test_no_variable_gives_it_away(monkeypatch):
    from mpsdiag.environment import gather, to_markdown
    from mpsdiag.escape import md_text

    for number, secret in enumerate(SHAPES):
        monkeypatch.setenv(f"HF_COOKIE_{number}", secret)
    monkeypatch.setenv("HF_BEARER", SECRET)
    monkeypatch.setenv("PYTORCH_MPS_PREFER_METAL", f"<b>|{SHAPES[0]}")  # one that is shown
    text = to_markdown(gather(), md_text)
    assert clean(text)
    assert "HF_BEARER: &lt;set&gt;" in text
    assert "<b>" not in text


@pytest.mark.parametrize("secret", SHAPES)
def test_no_page_and_no_document_of_a_check_gives_it_away(secret, capsys, tmp_path):
    """`check` and `trace` with --html and --json end here."""
    from mpsdiag.cli.output import show_answer
    from mpsdiag.reporting.layout import blocks

    text = f"cannot load {secret}, sorry"
    table = blocks.Table("", blocks.columns("a"), ((blocks.Entry(text),),))
    parts = (blocks.Prose(text), blocks.Points((text,)), blocks.Log("", text), table)
    made = blocks.Document("t", text, "", (blocks.Section("s", "", parts),))
    page = tmp_path / "page.html"
    show_answer({"model": text, "deep": [{"reason": text}]}, made, as_json=True, markdown=False, page=page)
    assert clean(capsys.readouterr().out)
    assert clean(page.read_text(encoding="utf-8"))


def test_a_model_in_the_home_folder_is_not_named_in_a_document(monkeypatch):
    monkeypatch.setenv("HOME", "/home/grace")
    assert redact_all({"model": "/home/grace/m", "n": [1, None, "/home/grace"]}) == {
        "model": "~/m",
        "n": [1, None, "~"],
    }
