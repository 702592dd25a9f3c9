from __future__ import annotations

import importlib.util
import shutil

import pytest

from mpsdiag.errors import BadInput
from mpsdiag.fixes.modes import MODES, mode_named
from mpsdiag.words import ATTENTION_MODES


def test_every_name_of_the_contract_has_its_mode():
    assert tuple(MODES) == ATTENTION_MODES
    assert [name for name, mode in MODES.items() if mode.exact] == ["sdpa", "safe_sdpa"]
    assert all(mode.name == name and mode.summary.endswith(".") for name, mode in MODES.items())
    assert MODES["sdpa"].repair() is MODES["sdpa"].instead() is None


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda:1", "xpu"])
@pytest.mark.parametrize("name", ["sdpa", "eager", "safe_sdpa", "unmask_sdpa", "min_mask_sdpa"])
def test_the_modes_of_plain_torch_run_anywhere(name, device):
    assert MODES[name].unavailable(device, "bfloat16") is None


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        ("cpu", "bfloat16", "needs a CUDA or XPU device, not cpu"),
        ("mps", "float16", "needs a CUDA or XPU device, not mps"),
        ("cuda:0", "float32", "computes in float16 or bfloat16, not in float32"),
        ("cuda:0", "bfloat16", "pip install flash-attn"),
    ],
)
def test_flash_attention_says_what_is_missing(device, dtype, reason, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert reason in MODES["flash_attention_2"].unavailable(device, dtype)


def test_flash_attention_with_its_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert MODES["flash_attention_2"].unavailable("cuda:0", "bfloat16") is None


@pytest.mark.needs(torch="2.13")  # which runs it on MPS too
def test_flex_attention_infers_but_does_not_train_on_the_cpu(monkeypatch):
    mode = MODES["flex_attention"]
    assert "cannot train on cpu" in mode.unavailable("cpu", "float32")
    assert "cannot train on mps" in mode.unavailable("mps", "float32")
    assert mode.unavailable("cuda:0", "bfloat16") is None
    assert "float64" in mode.unavailable("cpu", "float64", training=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    assert mode.unavailable("cpu", "float32", training=False) is None
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "no C++ compiler" in mode.unavailable("cpu", "float32", training=False)


def test_flex_attention_does_not_train_on_the_cpu_where_torch_does_not_refuse_it(monkeypatch):
    """In 2.7 and 2.8 torch looks at the device only; 2.7 breaks in its compiler."""
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    mode = MODES["flex_attention"]
    assert "no backward" in mode.unavailable("cpu", "float32")
    assert mode.unavailable("cpu", "float32", training=False) is None


def test_flex_attention_of_a_torch_that_runs_it_on_cuda_only(monkeypatch):
    from torch.nn.attention import flex_attention

    monkeypatch.delattr(flex_attention, "_validate_device", raising=False)
    assert "CUDA only" in MODES["flex_attention"].unavailable("mps", "float32", training=False)
    assert MODES["flex_attention"].unavailable("cuda", "float32") is None


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(BadInput, match=r"Unknown attention mode 'safe'. Did you mean 'safe_sdpa'\?"):
        mode_named("safe")
