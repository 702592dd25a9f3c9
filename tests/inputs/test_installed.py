"""What is said of the installed transformers, against the real thing: its Trainer, its masks."""

import math

import pytest
import torch
from torch import nn
from torch.overrides import BaseTorchFunctionMode
from transformers import Trainer, masking_utils

from mpsdiag import emulate_mps
from mpsdiag.emulation.selection import Emulation
from mpsdiag.inputs.installed import as_on_mps, compiles_under_a_mode, evaluation_hides_nonfinite, stock_mean


class Echo(nn.Module):
    """Its loss is its input."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, value, labels=None):
        return {"loss": value.mean() * self.weight.detach()}


def test_the_filter_is_what_the_trainer_really_does(arguments):
    losses = [1.0, math.nan, 3.0]
    data = [{"value": torch.tensor(loss), "labels": torch.tensor(0)} for loss in losses]
    options = arguments(per_device_eval_batch_size=1, logging_nan_inf_filter=True)
    printed = Trainer(model=Echo(), args=options, eval_dataset=data).evaluate()["eval_loss"]
    assert evaluation_hides_nonfinite() == math.isfinite(printed)
    assert stock_mean(losses, [1, 1, 1]) == pytest.approx(printed, nan_ok=True)


def test_a_trainer_without_the_filter_prints_nan(monkeypatch):
    monkeypatch.setattr("mpsdiag.inputs.installed.evaluation_hides_nonfinite", lambda: False)
    assert math.isnan(stock_mean([1.0, math.nan], [1, 1]))
    assert stock_mean([1.0, 4.0], [2, 1]) == 2.0


def test_the_emulated_release_answers_where_transformers_asks_for_torch(monkeypatch):
    """Transformers 4.53 to 5.0: an older mask function repairs fully masked rows beside torch 2.4."""

    def older(*args, **kwargs):
        return "repaired" if not masking_utils._is_torch_greater_or_equal_than_2_5 else "left alone"

    flag = "_is_torch_greater_or_equal_than_2_5"
    monkeypatch.setattr(masking_utils, flag, True, raising=False)
    monkeypatch.setattr(masking_utils, "sdpa_mask_older_torch", older, raising=False)
    functions = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    stock = functions["sdpa"]
    with as_on_mps(Emulation("2.4", 15)):
        assert functions["sdpa"]() == "repaired"
    with as_on_mps(Emulation("2.5", 15)):
        assert functions["sdpa"]() == "left alone"
    for nothing in (None, Emulation("2.8", 15)):
        with as_on_mps(nothing):
            assert functions["sdpa"] is stock
    assert functions["sdpa"] is stock
    assert masking_utils._is_torch_greater_or_equal_than_2_5


def test_it_is_the_emulation_of_emulate_mps():
    query = torch.zeros(1, 1, 2, 64)
    mask = torch.tensor([[False, False], [True, True]])
    attend = torch.nn.functional.scaled_dot_product_attention
    with as_on_mps(Emulation("2.8", 15)):
        ours = attend(query, query, query, mask)
    with emulate_mps("2.8"):
        assert torch.equal(ours, attend(query, query, query, mask)) is False  # NaN differs from itself
    assert ours[0, 0, 0].isnan().all()
    assert attend(query, query, query, mask).isfinite().all()


def test_a_compiler_that_cannot_follow_a_mode_is_found_out(monkeypatch):
    """Torch 2.7 and 2.8 write `torch._tensor.split`, which there is not, into what they compile."""

    def broken(function, backend):
        return lambda tensor: getattr(torch._tensor, "split", None) or torch._tensor.no_such_function

    monkeypatch.setattr(torch, "compile", broken)
    compiles_under_a_mode.cache_clear()
    assert not compiles_under_a_mode()
    monkeypatch.undo()
    compiles_under_a_mode.cache_clear()
    compiled = torch.compile(lambda tensor: tensor.split(1), backend="eager")
    if compiles_under_a_mode():
        with BaseTorchFunctionMode():
            assert len(compiled(torch.ones(2))) == 2
