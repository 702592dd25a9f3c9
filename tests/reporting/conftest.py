"""Journals to assemble stories of: those committed in tests/data, and ones made in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mpsdiag.benching.journal.journal import Journal, read_journal
from mpsdiag.benching.journal.record import Header, Record, Timing
from mpsdiag.reporting.story.report import assemble
from mpsdiag.scenario.scenario import Measured, Scenario

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="session")
def journal():
    """Reads a journal of tests/data; paths in warnings are cut down to the file's name."""

    def read(name: str) -> Journal:
        found = read_journal(DATA / f"{name}.jsonl")
        found.warnings = [warning.replace(f"{DATA}/", "") for warning in found.warnings]
        return found

    return read


@pytest.fixture(scope="session")
def stories(journal):
    """Reports of the journals of tests/data, made once."""
    return {
        "every_end": assemble([journal("every_end")]),
        "emulated": assemble([journal("emulated")]),
        "both": assemble([journal("every_end"), journal("emulated")]),
        "compared": assemble([journal("every_end")], [journal("older")]),
        "torn": assemble([journal("torn")]),
    }


def make_record(status: str = "ok", number: int = 0, *, samples=(), moved=0.0, versions="1", **more: Any) -> Record:
    names = {*Scenario.model_fields} & {*more}
    if isinstance(more.get("environment"), dict):  # that of the record, not the axis
        names.remove("environment")
    cell = Scenario(**{name: more.pop(name) for name in names})
    measured = None
    if number == 0 and status in {"ok", "nan", "wrong"}:
        loss = float("nan") if status == "nan" else 5.5 + moved
        measured = Measured(
            train_losses=[5.6, 5.5],
            eval_losses=[loss, 5.5],
            eval_loss=loss,
            stock_eval_loss=5.5,
            nonfinite_batches=int(status == "nan"),
            dead_rows=7,
            loss_moved_by=None if status == "nan" else moved,
        )
    timing = None
    if samples:
        timing = Timing(
            device=cell.device,
            warmup=1,
            eval_step=list(samples),
            train_step=[2 * one for one in samples],
            eval_tokens=100,
        )
    fields: dict[str, Any] = {
        "key": cell.key({"torch": versions}),
        "round": number,
        "cell": cell,
        "status": status,
        "started": f"2026-11-20T08:{number:02d}:00Z",
        "seconds": 1.0,
        "measured": measured,
        "timing": timing,
    }
    return Record(**{**fields, **more})


@pytest.fixture(scope="session")
def record():
    return make_record


@pytest.fixture(scope="session")
def journal_of():
    """A journal made in memory."""

    def make(*records: Record, environment=None, **header: Any) -> Journal:
        values = {
            "mpsdiag": "0.1.0",
            "command": "mpsdiag bench",
            "created": "2026-11-20T08:00:00Z",
            "environment": {"chip": "A", "versions": {"torch": "2.8.0"}} if environment is None else environment,
        }
        return Journal(header=Header(**{**values, **header}), records=list(records))

    return make


HOSTILE = {
    "pipe": "a|b|c",
    "backticks": "``` ` `` ```",
    "newlines": "one\ntwo\r\nthree\rfour\u2028five",
    "script": "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "attribute": '" onmouseover="alert(1)" \' x=\'',
    "template": "{{ 7 * 7 }} {% raw %}",
    "link": "[click](javascript:alert(1)) ![x](http://evil.example/x.png) http://evil.example www.evil.example",
    "mention": "@everyone fixes #1 _x_ *y* ~z~ $q$",
    "escape": "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b[2J \x07\x08\x00 \x9b31m",
    "direction": "\u202egnp.exe\u202c \u200b\ufeff",
    "surrogate": "bad \ud800 half",
    "markup": "[bold red]loud[/] [link=file:///etc/passwd]x[/link]",
    "maths": "$\\frac{1}{0}$ and $x",
    "formula": '=HYPERLINK("http://evil.example")',
    "close": "</style></script></details></table>-->]]>",
    "fence": "````\n# not a heading\n````",
    "megabyte": "x|`<b>\n" * 170_000,
}


@pytest.fixture(scope="session")
def hostile(journal_of):
    """A story in which every text is hostile in one way."""

    def tell_of(kind: str):
        text = HOSTILE[kind]
        header = {"command": text, "mpsdiag": text}
        records = [
            make_record("nan", model=text, dataset=text),
            make_record("ok", attn_implementation="safe_sdpa", model=text, dataset=text),
            make_record("ok", 1, samples=(0.01, 0.011), attn_implementation="safe_sdpa", model=text, dataset=text),
            make_record(
                "crash", attn_implementation="eager", model=text, dataset=text, reason=text, signal=text, log_tail=text
            ),
            make_record("ok", environment=text, model=text, dataset=text),
            make_record("skip", attn_implementation="flex_attention", model=text, dataset=text, reason=text),
        ]
        made = journal_of(*records, environment={"chip": text, "system": text, text: text}, **header)
        made.warnings = [text]
        return assemble(
            [made], [journal_of(make_record("ok", model=text, dataset=text), environment={"chip": text + "2"})]
        )

    return tell_of


@pytest.fixture(params=[kind for kind in HOSTILE if kind != "megabyte"])
def nasty(request, hostile):
    return hostile(request.param)


@pytest.fixture(params=list(HOSTILE))
def hostile_text(request):
    return HOSTILE[request.param]
