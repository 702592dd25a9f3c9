"""The scenario against what is known of stock transformers: NaN where and only where dead rows meet the bad kernel."""

import math

import pytest

from mpsdiag.emulation.mode import emulated
from mpsdiag.emulation.selection import Emulation
from mpsdiag.inputs.modules import filtered_mean
from mpsdiag.scenario.preparation import prepare
from mpsdiag.scenario.run import run_scenario
from mpsdiag.scenario.scenario import Scenario

SMALL = {"max_length": 96, "max_steps": 2, "eval_max_batches": 2, "batch_size": 3}
BAD = {"emulate": "2.8"}


@pytest.fixture(scope="module")
def stock():
    return run_scenario(Scenario(**SMALL))


@pytest.fixture(scope="module")
def broken():
    return run_scenario(Scenario(**SMALL, **BAD))


def test_the_cpu_is_fine_although_dead_rows_go_through(stock):
    assert stock.status == "ok"
    assert stock.dead_rows > 0
    assert stock.exact
    assert stock.loss_moved_by == 0.0
    assert stock.max_abs_logit_diff <= stock.bound


def test_evaluation_is_nan_and_training_is_not(broken):
    assert broken.status == "nan"
    assert all(math.isfinite(loss) for loss in broken.train_losses)
    assert len(broken.train_losses) == 2
    assert math.isnan(broken.eval_loss)
    assert broken.nonfinite_batches > 0
    assert math.isfinite(broken.reference_eval_loss)


def test_the_nan_is_born_in_the_attention_of_layer_0(broken):
    first = broken.first_nonfinite
    place = (first.layer, first.module, first.operation)
    assert place == (0, "model.layers.0.self_attn", "scaled_dot_product_attention")


def test_it_spreads_from_padded_positions_to_all_of_them(broken):
    layer_0, layer_1 = broken.nonfinite_rows
    assert sum(layer_1) > sum(layer_0) > 0


@pytest.mark.parametrize("padding", [{"padding_side": "right"}, {"batch_size": 1}])
def test_without_dead_rows_the_same_emulation_shows_nothing(padding):
    outcome = run_scenario(Scenario(**{**SMALL, **padding}, **BAD))
    assert outcome.status == "ok"
    assert outcome.dead_rows == 0
    assert math.isfinite(outcome.eval_loss)


def test_one_pad_anywhere_makes_the_mask_appear_and_with_it_the_nan():
    outcome = run_scenario(Scenario(**{**SMALL, "batch_size": 1}, pad_to_multiple_of=97, **BAD))
    assert outcome.dead_rows > 0
    assert outcome.status == "nan"


def test_a_sliding_window_dies_under_right_padding_too():
    case = Scenario(**SMALL, model="tiny-mistral", padding_side="right", **BAD)
    outcome = run_scenario(case)
    assert outcome.dead_rows > 0
    assert outcome.status == "nan"


@pytest.mark.needs(
    transformers="5.1"
)  # which repairs no rows beside torch 2.4; older ones: tests/inputs/test_installed.py
def test_old_releases_give_nan_in_training_at_the_first_step():
    outcome = run_scenario(Scenario(**SMALL, emulate="2.4"))
    assert math.isnan(outcome.train_losses[0])
    assert math.isfinite(outcome.reference_first_train_loss)
    assert outcome.first_nonfinite.layer == 0
    assert outcome.first_nonfinite.operation == "scaled_dot_product_attention"


@pytest.mark.parametrize(
    ("fix", "status", "exact"),
    [
        ({"attn_implementation": "eager"}, "ok", False),
        ({"attn_implementation": "safe_sdpa"}, "ok", True),
        ({"trainer": "mps_safe"}, "ok", True),
        ({"trainer": "cpu_loss"}, "nan", False),
    ],
)
def test_which_fix_resolves_it_and_which_is_exact(fix, status, exact, stock):
    outcome = run_scenario(Scenario(**SMALL, **fix, **BAD))
    assert (outcome.status, outcome.exact) == (status, exact)
    if status == "ok":
        assert outcome.eval_loss == pytest.approx(stock.eval_loss, abs=0.1)
    if exact:
        assert outcome.eval_loss == pytest.approx(stock.eval_loss, rel=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("release", [None, "2.9", "2.11"])
def test_half_precision_is_not_called_wrong(dtype, release):
    with emulated(Emulation(release, defects=()) if release else None):
        outcome = run_scenario(Scenario(**SMALL, dtype=dtype))
    assert outcome.status == "ok", outcome.reason


def test_padding_is_told_apart_from_tokens(stock):
    assert stock.real_tokens > 0
    assert stock.pad_tokens > 0


@pytest.mark.parametrize(
    ("losses", "printed"), [([1.0, math.nan, 3.0], 2.0), ([math.nan, math.inf], None), ([1.0, 2.0], 1.5)]
)
def test_what_stock_transformers_prints(losses, printed):
    value = filtered_mean(losses, [2] * len(losses))
    assert math.isnan(value) if printed is None else value == printed


def test_the_filter_weighs_batches_by_their_size():
    assert filtered_mean([1.0, 4.0, math.nan], [2, 1, 9]) == 2.0


def test_steps_can_be_taken_one_by_one():
    with prepare(Scenario(**SMALL)) as prepared:
        before = prepared.model.lm_head.weight.detach().clone()
        prepared.eval_step(prepared.eval_batches[0])
        assert (prepared.model.lm_head.weight == before).all()
        prepared.train_step(prepared.train_batches[0])
        assert not (prepared.model.lm_head.weight == before).all()
