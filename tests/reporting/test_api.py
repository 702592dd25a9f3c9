"""What people get in a script or a notebook: names that can be imported, answers that show themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path

import pytest
import torch

import mpsdiag
from mpsdiag.checking.diagnosis import Diagnosis, Judged
from mpsdiag.environment import gather
from mpsdiag.findings import Advice

DATA = Path(__file__).parent.parent / "data"
FRAME = {"html", "head", "body", "script", "style", "link", "iframe"}


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.seen = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)


@pytest.fixture
def diagnosis():
    return Diagnosis(
        verdict="not_affected",
        reason="all passed",
        level=1,
        device="cpu",
        emulated=None,
        environment=gather(),
        kernel=Judged(verdict="not_affected", reason="<b>all</b> passed"),
        advice=[Advice(text="Nothing to do.", commands=["mpsdiag check"])],
    )


def test_every_public_name_can_be_imported():
    assert all(getattr(mpsdiag, name) is not None for name in mpsdiag.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        mpsdiag.nonsense  # noqa: B018
    code = "import sys, mpsdiag; print(sorted({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_printing_a_diagnosis_shows_what_the_terminal_shows(diagnosis, capsys):
    print(diagnosis)  # noqa: T201
    out = capsys.readouterr().out
    assert out.startswith(f"not affected: cpu, on which nothing ran (torch {metadata.version('torch')}")
    assert "Nothing to do." in out
    assert repr(diagnosis) == f"<Diagnosis: {out.splitlines()[0]}>"


def test_a_notebook_gets_a_fragment_that_leaves_its_page_alone(diagnosis, stories):
    for answer in (diagnosis, stories["every_end"]):
        seen = Tags(answer._repr_html_()).seen
        assert not seen & FRAME
        assert "table" in seen or answer is diagnosis
        assert {"html", "head", "body", "style"} <= Tags(answer.to_html()).seen
        assert answer._repr_markdown_() == answer.to_markdown()
    assert "<b>all</b>" not in diagnosis._repr_html_()
    assert "img" in Tags(stories["every_end"]._repr_html_()).seen


def test_plain_data_is_the_json_document(diagnosis, stories):
    assert diagnosis.to_dict()["schema"] == 1
    found = stories["every_end"].to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["scenes"][0]["verdict"] == "affected"


def test_a_finding_of_trace_shows_itself():
    from mpsdiag.inputs.models import build_model

    model = build_model("tiny-llama")
    ids = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    with mpsdiag.emulate_mps("2.8"):
        origin = mpsdiag.trace(model, {"input_ids": ids, "attention_mask": mask})
    assert isinstance(origin, mpsdiag.Origin)
    assert str(origin).startswith("dead_rows: fully masked rows: layer 0, model.layers.0.self_attn")
    assert len(repr(origin)) < 200
    assert "mpsdiag.install" in origin.to_markdown()
    assert origin.to_dict()["cause"] == "dead_rows"


def test_reports_are_read_from_python():
    found = mpsdiag.report(DATA / "every_end.jsonl")
    assert isinstance(found, mpsdiag.Report)
    assert str(found).startswith("Affected: sdpa attention")
    table = found.to_pandas()
    assert len(table) == 13
    assert table[table.status == "nan"].eval_loss.isna().sum() == 0
    both = mpsdiag.report([DATA / "every_end.jsonl"], against=[DATA / "older.jsonl"])
    assert str(both).startswith("Against the older results")
    with pytest.raises(mpsdiag.BadInput, match="nowhere"):
        mpsdiag.report("nowhere.jsonl")
    with pytest.raises(mpsdiag.BadInput, match="at least one"):
        mpsdiag.report([])


def test_a_matrix_is_run_from_python(tmp_path):
    few = {"max_length": [128], "max_steps": 1, "eval_max_batches": 1, "rounds": 0, "padding_side": ["left"]}
    cells = {"attn_implementation": ["sdpa", "safe_sdpa"], "trainer": ["standard"], "device": ["cpu"]}
    found = mpsdiag.bench(out=tmp_path, emulate=["2.8"], **few, **cells)
    table = found.to_pandas()
    assert dict(zip(table.attn_implementation, table.status, strict=True)) == {"sdpa": "nan", "safe_sdpa": "ok"}
    assert mpsdiag.report(tmp_path).statuses == found.statuses
    with pytest.raises(mpsdiag.BadInput, match="Did you mean 'attn_implementation'"):
        mpsdiag.bench(out=tmp_path, atn_implementation=["sdpa"])
