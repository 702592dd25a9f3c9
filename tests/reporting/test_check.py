"""What check and trace found, in every format: the answer first, hostile texts harmless, nothing left out."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from mpsdiag.checking.diagnosis import Diagnosis, FixResult, Judged, KnownDefect, ProbeResult, ScenarioResult
from mpsdiag.environment import gather
from mpsdiag.findings import Advice, Blame, Emulated, Exposure
from mpsdiag.reporting import check, trace
from mpsdiag.reporting.formats import html, markdown, terminal
from mpsdiag.tracing.origin import CAUSES, Origin
from mpsdiag.tracing.run import TraceReport


def diagnosis(text: str = "plain") -> Diagnosis:
    advice = Advice(text=f"advice {text}", commands=[f"command {text}"])
    return Diagnosis(
        verdict="affected",
        reason=text,
        level=2,
        device="cpu",
        emulated=Emulated(release="2.8", macos=15),
        environment=gather(),
        kernel=Judged(verdict="affected", reason=f"kernel {text}"),
        probes=[
            ProbeResult(id="SDPA001", title=text, status="fail", detail="x" * 700, training="pass", evaluation="fail")
        ],
        scenario=ScenarioResult(
            verdict="affected",
            reason=f"scenario {text}",
            model=text,
            dataset=text,
            attention="sdpa",
            trainer="standard",
            padding_side="left",
            dtype="float32",
            train_loss=5.0,
            train_losses=[5.0],
            eval_loss=float("nan"),
            eval_losses=[float("nan")],
            stock_eval_loss=float("nan"),
            eval_batches=4,
            nonfinite_batches=4,
            dead_rows=574,
            sdpa_calls=8,
            real_tokens=9,
            pad_tokens=9,
            exposure=Exposure(rows=574, sequences=10, of_sequences=16, reasons={text: 574}, notes=[text]),
            first_nonfinite=None,
            max_abs_logit_diff=None,
            bound=None,
            cause=Blame(cause="dead_rows", layer=0, module="m", operation="o", summary=f"cause {text}", remedy=advice),
        ),
        fixes=[
            FixResult(
                name=name,
                kind="attention",
                resolves=name != "sdpa",
                exact=name == "safe_sdpa",
                max_abs_logit_diff=0.0,
                eval_loss=float("nan") if name == "sdpa" else 5.0,
                loss_moved_by=0.0,
                why=f"why {name} {text}",
            )
            for name in ("eager", "safe_sdpa", "sdpa")
        ],
        advice=[advice],
        differs_from_release=[f"differs {text}"],
        not_probed=[KnownDefect(id="SDPA002", title=f"known {text}")],
        notes=[f"note {text}"],
    )


def origin(cause: str = "dead_rows", text: str = "plain", **more) -> Origin:
    return Origin(
        cause=cause,
        layer=0,
        module=text,
        operation=text,
        summary=f"summary {text}",
        evidence={"where": {text: 3}},
        remedy=Advice(text=f"remedy {text}", commands=[text]),
        **more,
    )


def traced(text: str = "plain") -> TraceReport:
    return TraceReport(
        mode="evaluation",
        device="cpu",
        emulated=None,
        environment=gather(),
        case={"model": text, "dataset": text, "dtype": "float32", "batches": 4},
        bad_batches=[0],
        eval_loss=float("nan"),
        stock_eval_loss=float("nan"),
        origin=origin(text=text, also=[origin("overflow", text)]),
        notes=[text],
        repro_note=text,
    )


def documents(text: str = "plain"):
    return [check.document(diagnosis(text)), trace.document(traced(text))]


@pytest.mark.parametrize("made", [diagnosis, traced])
def test_what_transformers_prints_is_named_by_the_release_of_the_document(made):
    report = made()
    report.environment.versions["transformers"] = "4.57.6"
    assert "transformers 4.57.6 prints" in report.to_markdown()


def test_the_answer_is_in_the_first_24_lines():
    screen = terminal.write(documents()[0]).splitlines()[:24]
    assert screen[0] == "affected: EMULATED MPS of torch 2.8 on macOS 15 (on the CPU)"
    shown = "\n".join(screen)
    for part in ("Nothing here was measured", "Kernel: affected", "Scenario: affected", "safe_sdpa", "command"):
        assert part in shown


@pytest.mark.parametrize("number", [0, 1])
def test_every_format_says_all_of_it(number):
    made = documents()[number]
    words = ("note plain", "why eager", "known plain", "differs plain", "x" * 700, "574 in 4 batches")
    if number == 1:
        words = ("summary plain", "remedy plain", "Also: overflow", "3 at plain")
    texts = (terminal.write(made, width=900), markdown.issue_block(made), html.page(made))
    for text in texts:
        assert [one for one in words if one.lower() not in text.lower()] == []
    assert "torch" in texts[1].partition("<details>")[2]


def test_a_section_with_nothing_to_say_is_left_out():
    found = diagnosis()
    empty = found.model_copy(
        update={
            **{name: [] for name in ("fixes", "advice", "probes", "not_probed", "differs_from_release")},
            **dict.fromkeys(("scenario", "invariance"), None),
        }
    )
    headings = [section.title for section in check.document(found).sections]
    assert "Differs from the known behaviour of this release" in headings
    assert [section.title for section in check.document(empty).sections] == ["", "Environment"]


def test_hostile_texts_stay_text_in_every_format(hostile_text):
    for made in documents(hostile_text):
        assert "\x1b" not in terminal.write(made)
        page = html.page(made)
        assert "<script>alert" not in page
        assert page.count("<script>") == 1
        block = markdown.issue_block(made)
        assert len(block) < markdown.GITHUB_LIMIT
        block.encode("utf-8")
        tables = [one for one in MarkdownIt("commonmark").enable("table").parse(block) if one.type == "table_open"]
        assert len(tables) == block.count("\n|---")


def test_a_cause_that_has_no_name_here_is_named_all_the_same():
    for cause in CAUSES:
        assert trace.headline(traced().model_copy(update={"origin": origin(cause)})).startswith(f"{cause}: ")
