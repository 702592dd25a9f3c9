"""Backends forced in turn: tested with those that a CPU has."""

from __future__ import annotations

import pytest
import torch

from mpsdiag.probes import run as running
from mpsdiag.probes import sweep
from mpsdiag.probes.declaration import Refused
from mpsdiag.probes.known import CATALOGUE
from mpsdiag.probes.lab import forced
from mpsdiag.probes.run import BACKENDS, run_backend, run_level


@pytest.fixture(autouse=True)
def thin(monkeypatch):
    monkeypatch.setattr(sweep, "HEAD_DIMS", (64,))
    monkeypatch.setattr(sweep, "QUERIES", (4,))
    monkeypatch.setattr(sweep, "KEYS", (None, 64))


def inputs():
    return (torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(0)),) * 3


def test_no_backend_leaves_the_choice_to_torch():
    with forced(None):
        torch.nn.functional.scaled_dot_product_attention(*inputs())


def test_a_refusal_is_told_from_a_failure():
    with pytest.raises(Refused, match="CUDNN_ATTENTION does not support such calls"), forced("CUDNN_ATTENTION"):
        torch.nn.functional.scaled_dot_product_attention(*inputs())
    with pytest.raises(Refused, match="no backend NEWEST"), forced("NEWEST"):
        torch.nn.functional.scaled_dot_product_attention(*inputs())
    with pytest.raises(RuntimeError, match="something else"), forced("MATH"):
        raise RuntimeError("something else")


def test_a_forced_backend_is_the_one_that_runs():
    names = []
    for backend in ("MATH", "FLASH_ATTENTION"):
        with forced(backend), torch.profiler.profile() as profile:
            torch.nn.functional.scaled_dot_product_attention(*inputs())
        names.append({event.name for event in profile.events()})
    math, flash = names
    assert "aten::_scaled_dot_product_attention_math" in math
    assert any("flash" in name for name in flash)
    assert not any("flash" in name for name in math)


def test_the_math_backend_passes_on_the_cpu_and_is_named():
    findings = run_backend("MATH", "cpu")
    assert [(finding.id, finding.backend, finding.status) for finding in findings] == [
        ("SDPA001", "MATH", "pass"),
        ("SWEEP", "MATH", "pass"),
    ]


def test_a_backend_that_takes_nothing_is_a_skip():
    for finding in run_backend("CUDNN_ATTENTION", "cpu"):
        assert finding.status == "skip"
        assert "CUDNN_ATTENTION" in finding.detail


def test_level_three_adds_each_backend_of_the_device(monkeypatch):
    monkeypatch.setitem(BACKENDS, "cpu", ("MATH", "CUDNN_ATTENTION"))
    monkeypatch.setattr(running, "CATALOGUE", {"SDPA001": CATALOGUE["SDPA001"]})
    findings = run_level(3, "cpu", None)
    assert [(finding.id, finding.backend) for finding in findings] == [
        ("SDPA001", None),
        ("SWEEP", None),
        ("SDPA001", "MATH"),
        ("SWEEP", "MATH"),
        ("SDPA001", "CUDNN_ATTENTION"),
        ("SWEEP", "CUDNN_ATTENTION"),
    ]


def test_cuda_has_the_four_of_the_contract():
    assert BACKENDS["cuda"] == ("MATH", "EFFICIENT_ATTENTION", "FLASH_ATTENTION", "CUDNN_ATTENTION")
    assert "mps" not in BACKENDS
