"""The real work of a cell, small; the clock is ours where times are looked at."""

import itertools

import pytest

from mpsdiag.benching.journal.record import CellAnswer, Job
from mpsdiag.benching.plan.expand import expand
from mpsdiag.benching.plan.matrix import MatrixSpec, changed
from mpsdiag.benching.run.cell import run_cell, timing, verdict
from mpsdiag.errors import BadInput
from mpsdiag.scenario.scenario import Scenario
from mpsdiag.words import BUILTIN_DECODERS, BUILTIN_MODELS

SMALL = {"max_length": 96, "batch_size": 2, "max_steps": 1, "eval_max_batches": 2}


@pytest.fixture(scope="module")
def affected():
    return verdict(Scenario(emulate="2.8", emulate_macos=15, **SMALL))


def test_the_verdict_leg_is_emulated_and_finds_the_defect(affected):
    found = affected.measured
    assert affected.status == "nan"
    assert found.nonfinite_batches > 0
    assert found.dead_rows > 0
    assert found.first_nonfinite.layer == 0
    assert found.train_losses[0] == found.train_losses[0]
    assert len(found.eval_losses) == 2
    assert len(found.grad_norms) == 1
    assert found.real_tokens > found.pad_tokens > 0
    assert found.peak_process_memory > 2**20


def test_an_answer_survives_the_border(affected):
    from mpsdiag.serialization import dumps

    again = CellAnswer.model_validate_json(dumps(affected.model_dump()))
    assert dumps(again) == dumps(affected)


def test_safe_attention_is_correct_and_exact():
    found = verdict(Scenario(attn_implementation="safe_sdpa", emulate="2.8", **SMALL))
    assert (found.status, found.measured.exact) == ("ok", True)
    assert found.measured.loss_moved_by == pytest.approx(0.0, abs=2e-6)  # the kernel rounds as MPS does


def test_the_timing_leg_is_not_emulated_and_uses_the_clock_around_the_work_alone():
    ticks = itertools.count()
    answer = timing(Scenario(emulate="2.8", warmup=1, repeats=3, **SMALL), clock=lambda: float(next(ticks)))
    found = answer.timing
    assert answer.status == "ok"
    assert found.device == "cpu"
    assert (found.train_step, found.eval_step) == ([1.0] * 3, [1.0] * 3)  # two readings of the clock a sample
    assert next(ticks) == 12
    assert found.eval_tokens > 0
    assert found.eval_pads > 0  # there is a padded batch, so that is the one to time
    assert found.eval_tokens + found.eval_pads <= 2 * 96


def test_a_job_runs_the_leg_of_its_round():
    job = Job(key="k", cell=Scenario(**{**SMALL, "max_steps": 0, "warmup": 0, "repeats": 2}), round=2, log="")
    found = run_cell(job).timing
    assert found.train_step == []
    assert len(found.eval_step) == 2
    assert all(seconds > 0 for seconds in found.eval_step)


def test_an_emulated_abort_is_a_crash(monkeypatch):
    from mpsdiag.emulation.selection import EmulatedAbort
    from mpsdiag.scenario import run

    def abort(case, **_options):
        raise EmulatedAbort("LLVM ERROR: Failed to infer result type(s)")

    monkeypatch.setattr(run, "run_scenario", abort)
    answer = verdict(Scenario(emulate="2.8"))
    assert (answer.status, answer.reason) == ("crash", "emulated abort: LLVM ERROR: Failed to infer result type(s)")


STRUCK = {"tiny-embedder", "tiny-vlm"}  # Of the other tasks' models, encoders, no row is fully masked.


@pytest.mark.parametrize("model", [name for name in BUILTIN_MODELS if name not in BUILTIN_DECODERS])
def test_the_built_in_model_of_every_task_has_verdicts_and_timings(model):
    axes = {"model": [model], "emulate": ["none", "2.8"], "padding_side": ["left"], "trainer": ["standard"]}
    few = {"max_length": [200], "batch_size": [4], "max_steps": 1, "eval_max_batches": 1, "repeats": 1, "warmup": 1}
    cells = expand(changed(MatrixSpec(), {**axes, **few, "attn_implementation": ["sdpa", "safe_sdpa"]})).cells
    found = {(cell.emulate, cell.attn_implementation): verdict(cell).status for cell in cells}
    assert found.pop(("2.8", "sdpa")) == ("nan" if model in STRUCK else "ok")
    assert list(found.values()) == ["ok"] * 3
    assert timing(cells[0]).timing.eval_step[0] > 0


def test_a_matrix_names_the_task_and_the_key_holds_it():
    cells = expand(changed(MatrixSpec(), {"model": ["tiny-bert"], "task": ["auto", "token-classification"]})).cells
    assert {cell.task for cell in cells} == {"auto", "token-classification"}
    assert len({cell.key({"torch": "2.8"}) for cell in cells}) == len(cells)
    tagger = next(cell for cell in cells if cell.task == "token-classification")
    answer = verdict(tagger.model_copy(update={**SMALL, "max_steps": 0}))
    assert answer.status == "ok"
    assert answer.measured.eval_loss < 2  # Of two classes, not of a vocabulary.
    with pytest.raises(BadInput, match="--task"):
        changed(MatrixSpec(), {"task": ["tagging"]})
