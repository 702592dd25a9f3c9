"""Probes that no emulation can show: each still has to fail under its defect and pass without it, on a stand-in."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from torch.overrides import TorchFunctionMode

from mpsdiag.probes.known import CATALOGUE, sizes
from mpsdiag.probes.lab import Lab
from mpsdiag.probes.run import run_mode

attention = torch.nn.functional.scaled_dot_product_attention


class Instead(TorchFunctionMode):
    """Runs `with_defect(func, args, kwargs)` in place of the functions named."""

    def __init__(self, functions, with_defect):
        super().__init__()
        self.functions, self.with_defect = functions, with_defect

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.functions:
            return self.with_defect(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


@pytest.fixture
def pretend_mps(monkeypatch):
    """The CPU passes for an Apple GPU of endless memory: only what keeps a probe from running elsewhere is lifted."""
    monkeypatch.setattr(Lab, "require_real_mps", lambda self, why: None)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 2**40)


def outcome(name, mode="evaluation"):
    result = run_mode(CATALOGUE[name], mode, "cpu", None)
    return result.status, [check.seen for check in result.checks], result.reason


LEAKING = """
import json, torch
from torch.overrides import TorchFunctionMode
from mpsdiag.probes.known import CATALOGUE
from mpsdiag.probes.run import run_mode

class Leaks(TorchFunctionMode):
    kept = []
    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.kept.append(torch.ones_like(output))
        return output

def outcomes():
    results = [run_mode(CATALOGUE["SDPA012"], mode, "cpu", None) for mode in ("training", "evaluation")]
    return [[result.status, result.checks[0].seen] for result in results]

before = outcomes()
with Leaks():
    during = outcomes()
print(json.dumps([before, during]))
"""


def test_a_leak_of_every_output_is_seen_in_a_young_process():
    done = subprocess.run([sys.executable, "-c", LEAKING], capture_output=True, text=True, check=True)
    before, during = json.loads(done.stdout)
    assert before == [["pass", "steady"]] * 2
    assert [status for status, _ in during] == ["fail", "fail"]
    assert all(seen.startswith("grew by") for _, seen in during)


@pytest.mark.usefixtures("pretend_mps")
def test_a_cache_that_keeps_something_of_every_new_length_is_seen(monkeypatch):
    # The growth itself is measured above; here it is what differs between one length and many.
    calls = []

    def grown(call, device):
        calls.append({tuple(call(number).shape) for number in range(3)})
        return 0 if len(calls[-1]) == 1 else 3 * 2**30

    monkeypatch.setattr(sizes, "grown", grown)
    assert outcome("SDPA013")[0] == "fail"
    assert [len(shapes) for shapes in calls] == [1, 3]
    monkeypatch.setattr(sizes, "grown", lambda call, device: 2**30)
    assert outcome("SDPA013")[0] == "pass"


@pytest.mark.usefixtures("pretend_mps")
def test_corrupt_last_heads_are_seen(monkeypatch):
    monkeypatch.setattr(sizes, "HUGE", (1, 4, 64, 64))

    def last_head_wrong(func, args, kwargs):
        output = func(*args, **kwargs).clone()
        output[:, -1] *= 60
        return output

    assert outcome("SDPA018")[:2] == ("pass", ["right"])
    with Instead([attention], last_head_wrong):
        assert outcome("SDPA018")[:2] == ("fail", ["wrong values"])
    assert outcome("SDPA018", "training")[0] == "skip"


@pytest.mark.usefixtures("pretend_mps")
@pytest.mark.parametrize("name", ["SDPA018"])
def test_too_little_memory_is_a_skip_that_says_how_much(monkeypatch, name):
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 16 * 2**30)
    status, _, reason = outcome(name)
    assert status == "skip"
    assert "but this machine offers 16" in reason


@pytest.mark.usefixtures("pretend_mps")
def test_the_error_of_long_sequences_is_seen(monkeypatch):
    monkeypatch.setattr(sizes, "LONG", 256)

    def half_precision_softmax(func, args, kwargs):
        query, key, value = (tensor.float() for tensor in args[:3])
        scores = (query @ key.mT * query.shape[-1] ** -0.5).to(torch.float8_e4m3fn).float()
        return (scores.softmax(-1) @ value).to(args[0].dtype)

    assert outcome("SDPA022")[0] == "pass"
    with Instead([attention], half_precision_softmax):
        assert outcome("SDPA022")[:2] == ("fail", ["wrong values", "wrong values"])


@pytest.mark.usefixtures("pretend_mps")
def test_scrambled_columns_of_the_matrix_hardware_are_seen():
    def halves_swapped(func, args, kwargs):
        first, second = func(*args, **kwargs).chunk(2, dim=-1)
        return torch.cat([second, first], dim=-1)

    assert outcome("SDPA031")[:2] == ("pass", ["right"] * 8)
    with Instead([attention], halves_swapped):
        assert outcome("SDPA031")[:2] == ("fail", ["wrong values"] * 8)


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_a_batch_that_is_computed_otherwise_than_its_sequences_is_seen(mode):
    def second_sequence_off(func, args, kwargs):
        output = func(*args, **kwargs)
        return output if len(output) == 1 else output * torch.tensor([1.0, 1.1, 1.0]).view(3, 1, 1, 1).to(output.dtype)

    assert outcome("SDPA032", mode)[:2] == ("pass", ["right"] * 4)
    with Instead([attention], second_sequence_off):
        assert outcome("SDPA032", mode)[:2] == ("fail", ["wrong values"] * 4)


@pytest.mark.usefixtures("pretend_mps")
@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_nan_from_multihead_attention_is_seen(monkeypatch, mode):
    assert outcome("SDPA024", mode)[0] == "pass"
    real = torch.nn.MultiheadAttention.forward

    def nan(self, *args, **kwargs):
        output, weights = real(self, *args, **kwargs)
        return output * torch.nan, weights

    monkeypatch.setattr(torch.nn.MultiheadAttention, "forward", nan)
    assert outcome("SDPA024", mode)[:2] == ("fail", ["NaN"])


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_products_that_ignore_strides_or_read_too_far_are_seen(mode):
    def ignores_strides(func, args, kwargs):
        left, right = args
        if right.dtype != torch.float64 and not right.is_contiguous():
            right = right.transpose(-2, -1).contiguous().view(right.shape)
        return func(left, right)

    device_calls = []

    def reads_one_too_far(func, args, kwargs):
        left, right = args
        result = func(left, right)
        device_calls.append(left.dtype)
        # Of every three products the first is the device's; then come the float64 one and the CPU's own.
        if len(device_calls) % 3 == 1:
            result = result + left[..., :1] * right[..., :1, :]
        return result

    assert outcome("SDPA025", mode)[0] == "pass"
    with Instead([torch.Tensor.matmul, torch.Tensor.__matmul__, torch.matmul], ignores_strides):
        status, seen, _ = outcome("SDPA025", mode)
    assert status == "fail"
    assert seen == ["wrong values"] * 3 + ["right"]
    with Instead([torch.Tensor.matmul, torch.Tensor.__matmul__, torch.matmul], reads_one_too_far):
        _, seen, _ = outcome("SDPA025", mode)
    assert seen[-1] == "wrong values"


def test_entries_that_are_knowledge_only_have_no_trigger_and_never_pass():
    for name in ("SDPA007", "SDPA023", "SDPA027", "SDPA028"):
        probe = CATALOGUE[name]
        assert probe.trigger is None
        assert outcome(name) == ("skip", [], probe.never_run)
    assert run_mode(dataclasses.replace(probe, never_run=None), "training", "cpu", None).reason
