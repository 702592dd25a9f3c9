"""One spec and one result: what makes a key, and how numbers become a status."""

import math

import pytest

from mpsdiag.scenario.scenario import OLD_NAMES, Measured, Scenario, finite

VERSIONS = {"torch": "2.13.0", "transformers": "5.23.0"}
OTHER = {
    "model": "tiny-mistral",
    "task": "feature-extraction",
    "attn_implementation": "eager",
    "trainer": "mps_safe",
    "padding_side": "right",
    "dtype": "bfloat16",
    "device": "mps",
    "emulate": "2.8",
    "emulate_macos": 14,
    "dataset": "a.txt",
    "eval_dataset": "b.txt",
    "max_length": 11,
    "batch_size": 12,
    "pad_to_multiple_of": 13,
    "max_steps": 14,
    "eval_max_batches": 15,
    "seed": 16,
    "warmup": 17,
    "repeats": 18,
    "threads": 19,
    "files": "0123456789abcdef",
    "environment": "torch 2.8",
}


@pytest.mark.parametrize("name", Scenario.model_fields)
def test_every_field_is_part_of_the_key(name):
    assert Scenario(**{name: OTHER[name]}).key(VERSIONS) != Scenario().key(VERSIONS)


@pytest.mark.parametrize("library", VERSIONS)
def test_every_version_is_part_of_the_key(library):
    assert Scenario().key({**VERSIONS, library: "0"}) != Scenario().key(VERSIONS)


def test_the_same_scenario_has_the_same_key():
    assert Scenario(**OTHER).key(VERSIONS) == Scenario(**OTHER).key(dict(reversed(VERSIONS.items())))


def test_the_emulation_follows_from_the_fields():
    assert Scenario().emulation is None
    found = Scenario(emulate="2.7", emulate_macos=14).emulation
    assert (found.release, found.macos) == ("2.7", 14)
    assert Scenario(emulate="2.8").emulation.macos == 15


def test_old_names_lead_to_fields():
    assert set(OLD_NAMES.values()) <= set(Scenario.model_fields)
    assert not set(OLD_NAMES) & set(Scenario.model_fields)


@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [
        ({"train_losses": [1.0, math.nan]}, "nan", "the training loss is not finite from step 2"),
        ({"train_losses": [math.inf, 1.0], "nonfinite_batches": 1}, "nan", "from step 1"),
        ({"eval_losses": [1.0, math.nan], "nonfinite_batches": 1}, "nan", "1 of 2 evaluation batches"),
        ({"max_abs_logit_diff": math.inf, "bound": 1.0}, "nan", "logits at real positions are not finite"),
        ({"max_abs_logit_diff": math.nan, "bound": 1.0}, "nan", "logits at real positions are not finite"),
        (
            {"max_abs_logit_diff": 1.1, "bound": 1.0},
            "wrong",
            "differ from the float64 reference by 1.1; the bound is 1",
        ),
        ({"max_abs_logit_diff": 1.0, "bound": 1.0}, "ok", "all losses are finite"),
    ],
)
def test_the_status_follows_from_the_numbers(fields, status, reason):
    found = Measured(**fields)
    assert found.status == status
    assert reason in found.reason


def test_what_was_not_measured_is_not_finite():
    assert [finite(value) for value in (None, math.nan, math.inf, 0.0)] == [False, False, False, True]
