import math

import pytest
import torch

from mpsdiag import emulate_mps
from mpsdiag.inputs.models import build_model
from mpsdiag.scenario.reference import compare, cpu_copy, reference


class Trainer:
    """What `reference` asks of a Trainer."""

    model_accepts_loss_kwargs = False


@pytest.fixture(scope="module")
def model():
    return build_model("tiny-llama")


@pytest.fixture(scope="module")
def batch():
    ids = torch.randint(3, 250, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


@pytest.fixture(scope="module")
def truth(model, batch):
    return reference(model, [batch], Trainer())


def test_the_reference_is_float64_and_the_bound_is_small(model, batch, truth):
    exact = model.double()(**batch).logits
    model.float()
    assert truth.logits[0].dtype == torch.float64
    assert torch.allclose(truth.logits[0], exact, atol=1e-12)
    assert 0 < truth.bound_real <= truth.bound_all < 1e-5


def test_no_emulation_reaches_the_reference(model, batch, truth):
    with emulate_mps("2.8"):
        again = reference(model, [batch], Trainer())
    assert torch.equal(again.logits[0], truth.logits[0])
    assert again.losses == truth.losses


@pytest.mark.parametrize(("sequence", "position", "real"), [(0, 0, False), (0, 4, True), (1, 0, True)])
@pytest.mark.parametrize("value", [math.nan, 7.0])
def test_what_is_wrong_at_padding_is_not_wrong_at_real_positions(batch, truth, sequence, position, real, value):
    logits = truth.logits[0].float()
    logits[sequence, position, 5] = value
    found = compare([logits], truth)
    assert (found.real > truth.bound_real) == real
    assert found.everywhere > truth.bound_all
    assert math.isinf(found.everywhere) == math.isnan(value)


def test_the_copy_is_stock_sdpa_in_evaluation_mode_and_leaves_the_model_alone(model):
    model.train()
    twin = cpu_copy(model)
    assert (twin.training, model.training) == (False, True)
    assert twin.config._attn_implementation == "sdpa"
    twin.double()
    assert next(model.parameters()).dtype == torch.float32
    model.eval()
