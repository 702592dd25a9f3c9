"""The stand-alone predicate: on this torch, and on one whose attention gives NaN in fully masked rows."""

import re
import runpy
import sys

import pytest
import torch

from mpsdiag.bisect.bisection import PREDICATE


@pytest.fixture
def run(monkeypatch, capsys):
    def call():
        monkeypatch.setattr(sys, "argv", ["predicate.py", "--device", "cpu"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(PREDICATE), run_name="__main__")
        return ended.value.code, capsys.readouterr().out

    return call


@pytest.fixture
def faulty(monkeypatch):
    """NaN in fully masked rows without gradients, as torch 2.5 to 2.8 give on MPS."""
    stock = torch.nn.functional.scaled_dot_product_attention

    def attention(query, key, value, attn_mask=None, **options):
        output = stock(query, key, value, attn_mask=attn_mask, **options)
        if attn_mask is None or torch.is_grad_enabled():
            return output
        blocked = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask == -torch.inf
        return output.masked_fill(blocked.all(-1, keepdim=True), float("nan"))

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)


def test_a_healthy_torch_is_good(run):
    code, log = run()
    assert code == 0, log
    assert log.count("finite") == 8
    assert "eval_loss 5." in log


def test_nan_in_fully_masked_rows_is_bad(run, faulty):
    code, log = run()
    assert code == 1
    assert log.count("gradients off: NaN in fully masked rows") == 4
    assert log.count("gradients on: finite") == 4
    assert "eval_loss nan" in log


def test_the_kernel_decides_where_there_is_no_transformers(run, faulty, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, log = run()
    assert code == 1
    assert "scenario: cannot run" in log
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert run()[0] == 0


def test_without_torch_it_cannot_be_tested(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, log = run()
    assert code == 125
    assert "torch cannot be imported" in log


def test_it_stands_alone():
    assert not re.search(r"^\s*(from|import) mpsdiag", PREDICATE.read_text(), re.MULTILINE)
