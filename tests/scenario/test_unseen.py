"""Rows that were predicted and did not reach attention: the masks that were seen say why."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpsdiag.checking.advice import advise
from mpsdiag.checking.diagnosis import Judged, ProbeResult
from mpsdiag.findings import Exposure
from mpsdiag.scenario.run import Observer, unseen
from mpsdiag.scenario.scenario import Measured, Scenario

PREDICTED = Exposure(rows=2, sequences=1, of_sequences=1)


class Attention(nn.Module):
    """One call of attention with the mask that it is given."""

    def forward(self, mask):
        query = torch.ones(1, 1, 4, 8)
        return F.scaled_dot_product_attention(query, query, query, mask)


def seen(mask):
    model = Attention()
    observer = Observer(model)
    with observer.watching():
        model(mask)
    return unseen(PREDICTED, model, [observer.collect()])


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (torch.full((1, 1, 4, 4), torch.finfo(torch.float32).min), "writes finite masks (down to -3.4e+38)"),
        (torch.ones(1, 1, 4, 4, dtype=torch.bool), "passed attention masks without fully masked rows"),
        (torch.full((1, 1, 4, 4), -torch.inf).triu(1), "passed attention masks without fully masked rows"),
        (None, "passed no mask to F.scaled_dot_product_attention"),
    ],
)
def test_the_masks_say_why(mask, why):
    found = seen(mask)
    assert not found.reach_sdpa
    assert why in found.notes[-1]
    assert "Attention of transformers" in found.notes[-1]


def advice_for(exposure, verdict, device="cpu"):
    measured = Measured(eval_losses=[1.0], eval_loss=1.0, exposure=exposure, max_abs_logit_diff=0.0, bound=1.0)
    status = "fail" if verdict == "affected" else "pass"
    probe = ProbeResult(id="SDPA001", title="", status=status, detail="", training="pass", evaluation=status)
    case = Scenario(model="tiny-gpt2", device=device)
    return advise(Judged(verdict=verdict, reason=""), [probe], measured, case, [], None)


def test_the_advice_says_so_and_not_what_was_run_already():
    exposure = seen(torch.full((1, 1, 4, 4), -1e4))
    first = advice_for(exposure, "affected")[0]
    assert "none reached it" in first.text
    assert "finite masks" in first.text
    assert "padding on the left" not in first.text
    assert first.commands == ["mpsdiag check --model tiny-llama"]
    assert "finite masks" in advice_for(exposure, "not_affected")[0].text


@pytest.mark.parametrize(("device", "release"), [("cpu", "2.5"), ("mps", "2.9"), ("cuda", "2.5"), ("xpu", None)])
def test_the_release_that_cures_is_that_of_the_device(device, release):
    lines = [line for advice in advice_for(PREDICTED, "affected", device) for line in advice.commands]
    cures = [line for line in lines if line.startswith("pip install")]
    assert cures == ([] if release is None else [f'pip install -U "torch>={release}"'])
