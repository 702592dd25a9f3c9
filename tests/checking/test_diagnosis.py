import math

import pytest

from mpsdiag.checking.diagnosis import Judged, ProbeResult, kernel_verdict, overall, scenario_verdict
from mpsdiag.scenario.scenario import Measured


def probe(status, evaluation="pass", training="pass", name="SDPA001"):
    return ProbeResult(id=name, title="a row", status=status, detail="", training=training, evaluation=evaluation)


def judged(verdict):
    return Judged(verdict=verdict, reason=f"because {verdict}")


@pytest.mark.parametrize(
    ("statuses", "verdict"),
    [
        (["pass"], "not_affected"),
        (["pass", "skip"], "not_affected"),
        (["fail", "pass"], "affected"),
        (["fail", "error"], "affected"),
        (["error", "pass"], "undecided"),
        (["skip"], "undecided"),
        ([], "undecided"),
    ],
)
def test_a_skip_is_never_a_pass_and_a_failure_always_counts(statuses, verdict):
    assert kernel_verdict([probe(status) for status in statuses]).verdict == verdict


def test_the_reason_names_the_grad_modes_that_fail():
    reason = kernel_verdict([probe("fail", evaluation="fail", training="fail")]).reason
    assert "SDPA001" in reason
    assert "training and evaluation" in reason


@pytest.mark.parametrize(
    ("kernel", "scenario", "verdict"),
    [
        ("affected", "not_affected", "affected"),
        ("not_affected", "affected", "affected"),
        ("undecided", "not_affected", "undecided"),
        ("not_affected", "undecided", "undecided"),
        ("undecided", "affected", "affected"),
        ("not_affected", "not_affected", "not_affected"),
    ],
)
def test_either_part_makes_the_verdict(kernel, scenario, verdict):
    assert overall(judged(kernel), judged(scenario)).verdict == verdict


@pytest.mark.parametrize("kernel", ["affected", "not_affected", "undecided"])
def test_without_a_scenario_the_kernel_alone_decides(kernel):
    assert overall(judged(kernel), None).verdict == kernel


def nan_outcome(**more):
    return Measured(eval_losses=[math.nan, 1.0], nonfinite_batches=1, **more)


def test_a_nan_that_the_cpu_does_not_give_is_the_devices():
    assert scenario_verdict(nan_outcome(reference_eval_loss=1.0)).verdict == "affected"


def test_a_nan_that_the_cpu_gives_too_is_not():
    judgement = scenario_verdict(nan_outcome(reference_eval_loss=math.nan))
    assert judgement.verdict == "undecided"
    assert "the CPU gives the same" in judgement.reason


def test_training_is_judged_by_its_first_step_since_later_weights_are_spoilt():
    spoilt = nan_outcome(
        train_losses=[math.nan, math.nan], reference_first_train_loss=5.0, reference_eval_loss=math.nan
    )
    assert scenario_verdict(spoilt).verdict == "affected"
    own_fault = nan_outcome(train_losses=[math.nan], reference_first_train_loss=math.nan, reference_eval_loss=math.nan)
    assert scenario_verdict(own_fault).verdict == "undecided"


def test_weights_that_a_later_step_spoilt_are_judged_by_the_evaluation():
    """Training began finite and diverged: the CPU's evaluation of these weights is NaN too."""
    diverged = nan_outcome(train_losses=[5.0, math.nan], reference_first_train_loss=5.0, reference_eval_loss=math.nan)
    assert scenario_verdict(diverged).verdict == "undecided"
    assert scenario_verdict(nan_outcome(train_losses=[5.0, math.nan], reference_eval_loss=5.0)).verdict == "affected"


def test_a_wrong_number_is_as_bad_as_a_nan():
    assert scenario_verdict(Measured(max_abs_logit_diff=1.0, bound=0.1)).verdict == "affected"
    assert scenario_verdict(Measured(max_abs_logit_diff=0.1, bound=0.1)).verdict == "not_affected"
