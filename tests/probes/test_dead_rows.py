"""Level 1: what it judges, what it leaves open, what it costs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from mpsdiag.emulation.selection import Emulation
from mpsdiag.probes.known.fully_masked import additive, left_padded
from mpsdiag.probes.run import run_level, run_probe


def level_one(release, macos=15):
    (finding,) = run_level(1, "cpu", Emulation(release, macos))
    return finding


def test_the_mask_of_a_left_padded_sequence():
    mask = left_padded(4, 2)
    assert mask.shape == (1, 1, 4, 4)
    assert mask[0, 0].int().tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert additive(mask, torch.float16, -torch.inf)[0, 0, 0].tolist() == [-torch.inf] * 4


def test_on_the_real_cpu_all_pass_in_both_modes():
    (finding,) = run_level(1, "cpu", None)
    assert (finding.status, finding.training, finding.evaluation) == ("pass", "pass", "pass")
    # 2 lengths x (3 dtypes x 3 kinds of mask + float16 with cold scores) x 2 grad modes
    assert finding.cases == 40
    assert "bool mask: zeros" in finding.detail


@pytest.mark.parametrize(
    ("release", "training", "evaluation"),
    [("2.4", "fail", "fail"), ("2.5", "pass", "fail"), ("2.8", "pass", "fail"), ("2.9", "pass", "pass")],
)
def test_training_escapes_from_torch_2_5_on(release, training, evaluation):
    finding = level_one(release)
    assert (finding.training, finding.evaluation) == (training, evaluation)
    assert finding.seen in {"NaN", "zeros, mean of V, unmasked softmax"}


def test_the_failures_are_the_infinite_masks_and_half_precision_minima_of_cold_scores():
    failed = {(check.name.partition(",")[0], check.mode) for check in level_one("2.8").failed}
    assert failed == {
        ("bool mask", "evaluation"),
        ("-inf mask", "evaluation"),
        ("finfo.min mask on scores near -20", "evaluation"),
    }


# What table 3 says of finfo.min rows: U is the mean of V, sm the softmax of the raw scores; none of them is a failure.
@pytest.mark.parametrize(
    ("release", "values"),
    [
        ("2.8", {"mean of V"}),
        ("2.9", {"mean of V"}),
        ("2.11", {"mean of V", "unmasked softmax"}),
        ("2.14", {"mean of V", "zeros", "unmasked softmax"}),
    ],
)
def test_values_under_finfo_min_are_told_and_not_failed(release, values):
    from mpsdiag.probes.known import CATALOGUE
    from mpsdiag.probes.run import run_mode

    result = run_mode(CATALOGUE["SDPA001"], "evaluation", "cpu", Emulation(release))
    minimum = [check for check in result.checks if check.name.startswith("finfo.min mask,")]
    assert len(minimum) == 6
    assert all(check.ok for check in minimum)
    assert {check.seen for check in minimum} == values


def test_a_wrong_real_row_fails_under_any_mask(monkeypatch):
    real = torch.nn.functional.scaled_dot_product_attention

    def off(query, *rest, **named):
        output = real(query, *rest, **named).clone()
        output[..., -1, :] += 0.5
        return output

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", off)
    finding = run_probe("SDPA001", device="cpu")
    assert len(finding.failed) == finding.cases == 40
    assert {check.seen for check in finding.failed} == {"wrong values"}


def test_a_dead_row_that_is_not_zero_fails_where_it_must_be(monkeypatch):
    real = torch.nn.functional.scaled_dot_product_attention

    def mean_of_values(query, key, value, mask=None, **named):
        output = real(query, key, value, mask, **named).clone()
        output[..., 0, :] = value.mean(-2)
        return output

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", mean_of_values)
    finding = run_probe("SDPA001", device="cpu")
    assert {check.name.partition(",")[0] for check in finding.failed} == {"bool mask", "-inf mask"}


COST = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.process_time()
from mpsdiag.probes.run import run_level
(finding,) = run_level(1, "cpu", None)
seconds = time.process_time() - start
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps([finding.status, seconds, sorted(new)]))
"""


def test_level_one_costs_little_beyond_torch_itself():
    done = subprocess.run([sys.executable, "-c", COST], capture_output=True, text=True, check=True)
    status, seconds, loaded = json.loads(done.stdout)
    assert status == "pass"
    assert seconds < 0.3
    assert not {"transformers", "sympy", "pandas", "scipy", "pydantic"} & set(loaded)
