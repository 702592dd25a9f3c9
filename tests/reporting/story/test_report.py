from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, median_abs_deviation

from mpsdiag.reporting.layout.blocks import Limits
from mpsdiag.reporting.layout.cell_tables import cost_table
from mpsdiag.reporting.story.report import assemble


def grid(story, padding="left", scene=0):
    found = next(one for one in story.scenes[scene].grids if one.padding == padding)
    return {
        (attention, trainer): mark.text
        for attention, marks in zip(found.attentions, found.marks, strict=True)
        for trainer, mark in zip(found.trainers, marks, strict=True)
    }


def test_every_way_a_cell_can_end_has_its_own_mark(stories):
    found = grid(stories["every_end"])
    assert found["sdpa", "standard"] == "NaN"
    assert found["safe_sdpa", "standard"] == "exact"
    assert found["eager", "standard"] == "moved +0.0013"
    assert found["min_mask_sdpa", "standard"] == "wrong"
    assert found["unmask_sdpa", "standard"] == "crashed"
    assert found["sdpa", "grad_eval"] == "out of memory"
    assert found["sdpa", "cpu_forward"] == "timeout"
    assert found["sdpa", "cpu_loss"] == "error"
    assert found["flex_attention", "standard"] == "not run"
    assert found["eager", "mps_safe"] == "not run"


def test_padding_sides_stand_apart(stories):
    assert grid(stories["every_end"], "left")["sdpa", "standard"] == "NaN"
    assert grid(stories["every_end"], "right")["sdpa", "standard"] == "exact"


def test_the_headline_has_verdict_fix_and_price(stories):
    text = stories["every_end"].headline
    assert text.startswith("Affected: sdpa attention with the standard trainer gives a NaN evaluation loss")
    assert "Use safe_sdpa attention: it resolves it and is exact" in text
    assert "takes 1.03× [1.00, 1.05] the baseline's." in text


def test_the_exact_fix_goes_before_a_faster_one_that_moves_the_loss(record, journal_of):
    cells = [
        record("nan"),
        *(record("nan", n, samples=(1.0, 1.1)) for n in (1, 2)),
        record(attn_implementation="eager", moved=0.01),
        record(number=1, attn_implementation="eager", samples=(0.5, 0.5)),
        record(attn_implementation="safe_sdpa"),
        record(number=1, attn_implementation="safe_sdpa", samples=(2.0, 2.0)),
    ]
    [scene] = assemble([journal_of(*cells)]).scenes
    assert [fix.attention for fix in scene.verdict.fixes] == ["safe_sdpa", "eager"]


def test_a_fix_must_be_right_wherever_it_was_run_and_run_wherever_it_is_needed(record, journal_of):
    cells = []
    for model in ("tiny-gpt2", "tiny-llama"):
        cells += [record("nan", model=model), record("ok", model=model, attn_implementation="safe_sdpa")]
    cells += [record("ok", model="tiny-gpt2", attn_implementation="eager")]  # not run with tiny-llama
    cells += [record("ok", model="tiny-gpt2", attn_implementation="unmask_sdpa")]
    cells += [record("wrong", model="tiny-llama", attn_implementation="unmask_sdpa")]
    [scene] = assemble([journal_of(*cells)]).scenes
    assert [fix.attention for fix in scene.verdict.fixes] == ["safe_sdpa"]


def test_without_a_fix_that_works_it_says_so(record, journal_of):
    story = assemble([journal_of(record("nan"), record("nan", attn_implementation="eager"))])
    assert "None of the fixes that were run resolves it everywhere." in story.headline


def test_not_affected_needs_a_right_baseline(record, journal_of):
    assert assemble([journal_of(record())]).headline.startswith("Not affected: sdpa attention")
    assert assemble([journal_of(record("timeout"))]).headline.startswith("Undecided")
    assert assemble([journal_of(record("skip"))]).headline.startswith("Undecided")
    assert assemble([journal_of(record(attn_implementation="eager"))]).headline.startswith("Undecided: the baseline")
    assert assemble([journal_of(record("nan", attn_implementation="eager"))]).headline.startswith(
        "Affected: the baseline"
    )
    assert assemble([journal_of()]).headline.startswith("Undecided: these journals have no cells")


def test_a_baseline_without_the_standard_trainer_is_named(record, journal_of):
    text = assemble(
        [journal_of(record("nan", trainer="cpu_loss"), record(attn_implementation="eager", trainer="cpu_loss"))]
    ).headline
    assert "sdpa attention with the cpu_loss trainer gives a NaN" in text


def test_emulated_is_said_in_every_sentence_about_it(stories):
    for scene in stories["emulated"].scenes:
        assert "emulated MPS of torch" in scene.verdict.sentence
        assert "not measured on MPS" in scene.verdict.sentence
    assert "timed on cpu without emulation" in stories["emulated"].scenes[0].verdict.recommendation
    assert "emulated settings" in stories["emulated"].headline
    assert "2 of them emulated" in stories["both"].headline


def test_a_nan_or_wrong_cell_is_never_ranked_nor_given_a_ratio(stories):
    from mpsdiag.reporting.layout.blocks import Limits, Table
    from mpsdiag.reporting.layout.sections import document

    [table] = [one for one in stories["every_end"].scenes[0].panels[0].costs if one.padding == "left"]
    ranks = [(row.result.cell.attn_implementation, row.rank) for row in table.rows]
    assert ranks == [("safe_sdpa", 1), ("eager", 2), ("sdpa", 3), ("sdpa", None), ("min_mask_sdpa", None)]
    section = next(one for one in document(stories["every_end"], Limits()).sections if one.key == "cost")
    shown = next(one for one in section.blocks if isinstance(one, Table))
    column = [one.name for one in shown.columns].index("eval to baseline")
    # min_mask_sdpa is the fastest of all, and wrong: its time is there, a speed-up is not.
    assert shown.rows[-1][column].text == "–"
    assert shown.rows[-2][column].text == "baseline"
    assert "The baseline itself is NaN" in shown.note


def test_timings_of_an_emulated_cell_say_what_they_were_measured_on(stories):
    for scene in stories["emulated"].scenes:
        for panel in scene.panels:
            for table in panel.costs:
                assert table.emulated
                assert table.timed_on == ("cpu",)


def test_ratios_are_to_the_baseline_of_the_same_side(stories):
    for table in stories["every_end"].scenes[0].panels[0].costs:
        row = next(row for row in table.rows if row.result.cell.attn_implementation == "safe_sdpa")
        base = next(row for row in table.rows if row.baseline)
        rounds = [
            np.median(row.result.eval_rounds[one]) / np.median(base.result.eval_rounds[one])
            for one in row.result.eval_rounds
        ]
        assert row.eval_ratio.value == pytest.approx(np.median(rounds))
        assert row.eval_ratio.p == mannwhitneyu(row.result.eval_step, base.result.eval_step).pvalue
        assert row.eval_step.mad == pytest.approx(median_abs_deviation(row.result.eval_step))
        assert row.eval_ratio.low <= row.eval_ratio.value <= row.eval_ratio.high


def test_a_ratio_is_one_of_rounds_that_both_ran(record, journal_of):
    """The machine got twice as slow when only the baseline still ran."""
    cells = [record("nan"), record(attn_implementation="safe_sdpa")]
    cells += [record(number=number, attn_implementation="safe_sdpa", samples=(1.0, 1.0)) for number in (1, 2, 3)]
    for number, seconds in enumerate((1.0, 1.0, 1.0, 2.0, 2.0), start=1):
        cells.append(record(number=number, samples=(seconds, seconds)))
    [table] = assemble([journal_of(*cells)]).scenes[0].panels[0].costs
    found = table.rows[0].eval_ratio
    assert (found.low, found.value, found.high, found.n) == (1.0, 1.0, 1.0, 6)


def test_a_ratio_lies_in_its_interval_however_a_round_strays(record, journal_of):
    cells = [record("nan"), record(attn_implementation="safe_sdpa")]
    for number, (ours, theirs) in enumerate(((1.2, 1.0), (1.2, 1.0), (1.2, 2.5)), start=1):
        cells.append(record(number=number, attn_implementation="safe_sdpa", samples=(ours, ours)))
        cells.append(record(number=number, samples=(theirs, theirs)))
    [table] = assemble([journal_of(*cells)]).scenes[0].panels[0].costs
    found = table.rows[0].eval_ratio
    assert found.value == pytest.approx(1.2)
    assert found.low <= found.value <= found.high


def test_times_without_padding_say_so(record, journal_of):
    for pads, said in ((0, True), (5, False)):
        timed = record(number=1, samples=(1.0, 1.0))
        timed.timing.eval_pads = pads
        story = assemble([journal_of(record(), timed)])
        panel = story.scenes[0].panels[0]
        note = cost_table(panel, panel.costs[0], story, Limits(), alone=True).note
        assert ("no padding" in note) is said


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"signal": "SIGABRT"}, "affected"),
        ({"signal": "SIGSEGV"}, "affected"),
        ({"reason": "emulated abort: mps_matmul"}, "affected"),
        ({"signal": "SIGKILL"}, "undecided"),
        ({"reason": "exited without an answer (exit code 1)"}, "undecided"),
    ],
)
def test_a_baseline_that_was_killed_has_not_answered(record, journal_of, more, word):
    story = assemble([journal_of(record("crash", **more), record(attn_implementation="safe_sdpa"))])
    assert story.scenes[0].verdict.word == word
    assert ("gives a crash" in story.headline) is (word == "affected")


@pytest.mark.parametrize(
    ("status", "words"), [("timeout", "again with --retry timeout to resume"), ("interrupted", "bench again to resume")]
)
def test_what_to_do_about_an_unfinished_baseline(record, journal_of, status, words):
    assert words in assemble([journal_of(record(status))]).headline


def test_another_baseline_can_be_asked_for(record, journal_of):
    cells = [record("nan"), record(attn_implementation="eager"), record(attn_implementation="safe_sdpa")]
    cells += [record(number=1, attn_implementation=one, samples=(1.0, 1.0)) for one in ("sdpa", "eager", "safe_sdpa")]
    story = assemble([journal_of(*cells)], baseline="eager")
    assert story.baseline == "eager"
    assert story.scenes[0].verdict.word == "not_affected"
    assert [row.result.cell.attn_implementation for row in story.scenes[0].panels[0].costs[0].rows if row.baseline] == [
        "eager"
    ]


def test_cells_that_did_not_finish_are_all_there_with_their_rounds(stories):
    found = {(setback.status, setback.round) for one in stories["every_end"].unfinished for setback in one.setbacks}
    assert found == {("crash", 0), ("oom", 0), ("timeout", 0), ("error", 0), ("interrupted", 4)}


def test_a_torn_line_is_told(stories):
    assert any("torn" in note for note in stories["torn"].notes)


def test_journals_with_different_baselines_use_the_first_and_say_so(record, journal_of):
    story = assemble([journal_of(record()), journal_of(record(), baseline="eager")])
    assert story.baseline == "sdpa"
    assert any("different baselines" in note for note in story.notes)


def test_beyond_the_budget_cells_go_without_intervals_and_it_says_so(record, journal_of, monkeypatch):
    from mpsdiag.reporting.story import ranking

    monkeypatch.setattr(ranking, "INTERVALS_FOR", 1)
    cells = [record(), record(number=1, samples=(1.0, 1.1))]
    cells += [record(attn_implementation="eager"), record(number=1, attn_implementation="eager", samples=(1.0, 1.1))]
    story = assemble([journal_of(*cells)])
    rows = story.scenes[0].panels[0].costs[0].rows
    assert [row.eval_step.low is None for row in rows] == [False, True]
    assert any("without intervals" in note for note in story.notes)


def test_the_price_is_that_of_the_side_where_the_baseline_fails(record, journal_of):
    cells = []
    for side, status, factor in (("left", "nan", 2.0), ("right", "ok", 9.0)):
        cells += [record(status, padding_side=side), record(number=1, padding_side=side, samples=(1.0, 1.0, 1.0))]
        cells += [record(padding_side=side, attn_implementation="safe_sdpa")]
        cells += [record(number=1, padding_side=side, attn_implementation="safe_sdpa", samples=(factor,) * 3)]
    assert "takes 2.00× [2.00, 2.00] the baseline's." in assemble([journal_of(*cells)]).headline


def test_several_settings_give_their_range_and_a_noisy_one_a_warning(record, journal_of):
    cells = []
    for model, factor in (("tiny-gpt2", 1.0), ("tiny-llama", 4.0)):
        cells += [record("nan", model=model), record(number=1, model=model, samples=(1.0, 1.0))]
        cells += [record(model=model, attn_implementation="safe_sdpa")]
        cells += [record(number=1, model=model, attn_implementation="safe_sdpa", samples=(factor,) * 2)]
    assert "takes 2.00× the baseline's (1.00 to 4.00 in 2 settings)" in assemble([journal_of(*cells)]).headline
    noisy = [record("nan"), record(number=1, samples=(1.0, 9.0, 2.0))]
    noisy += [
        record(attn_implementation="safe_sdpa"),
        record(number=1, attn_implementation="safe_sdpa", samples=(1.0, 7.0, 3.0)),
    ]
    assert "noisy machine" in assemble([journal_of(*noisy)]).headline
