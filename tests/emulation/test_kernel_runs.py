"""The emulator against the shipped kernels' own code, executed on a CPU: every recorded run, by one rule."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from mpsdiag.emulation.mode import emulate_mps
from mpsdiag.emulation.releases import defects_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
kernel_runs = importlib.import_module("kernel_runs")
sys.path.remove(str(BENCHMARKS))

F16 = torch.float16


@pytest.fixture(scope="module")
def recorded():
    return list(kernel_runs.recorded())


def disagree(recorded, without=None, releases=("2.8.0", "2.9.0", "2.11.0", "2.12.0", "2.13.0", "2.14.0"), **only):
    """The runs that do not agree, one defect left out of the emulation."""
    chosen = [
        (run, want)
        for run, want in recorded
        if run["release"] in releases and all(run[key] == value for key, value in only.items())
    ]
    assert chosen
    found = []
    for run, want in chosen:
        defects = tuple(d for d in defects_of(run["release"][:-2]) if d not in {"SDPA004", without})
        if not kernel_runs.compare(run, want, defects=defects).agrees:
            found.append(run)
    return found


def test_all_recorded_runs_agree(recorded):
    assert len(recorded) == 1201
    assert disagree(recorded) == []


def test_each_kernel_dtype_mask_poison_and_layout_is_there(recorded):
    have = Counter()
    for run, _ in recorded:
        have.update((key, run[key]) for key in ("path", "dtype", "poison", "layout", "mask", "release", "is_causal"))
        have[run["path"], run["dtype"]] += 1
    assert {value for key, value in have if key == "path"} == {"vector_1pass", "vector_2pass", "prefill", "mpp"}
    assert len([1 for key, _ in have if key == "poison"]) == 16
    assert len([1 for key, _ in have if key == "layout"]) == 8
    assert len([1 for key, _ in have if key == "mask"]) >= 26
    for path in ("vector_1pass", "vector_2pass", "prefill"):
        assert all(have[path, dtype] for dtype in ("f32", "f16", "bf16"))
    assert kernel_runs.DATA.stat().st_size < 1_000_000


@pytest.mark.parametrize(
    ("defect", "releases", "only"),
    [
        ("SDPA002", ("2.8.0",), {"family": "layout"}),
        ("SDPA003", ("2.9.0", "2.11.0"), {"family": "layout"}),
        ("SDPA005", ("2.11.0",), {"family": "bool_operator", "path": "vector_1pass"}),
        ("SDPA006", ("2.12.0",), {"family": "bool_operator"}),
        ("SDPA020", ("2.13.0",), {"path": "prefill", "poison": "qnan"}),
        ("SDPA020", ("2.13.0",), {"path": "vector_2pass", "poison": "kallnan"}),
        ("SDPA029", ("2.12.0",), {"mask": "boolalldead/4d"}),
    ],
)
def test_without_a_defect_its_runs_do_not_agree(recorded, defect, releases, only):
    assert disagree(recorded, defect, releases, **only)


def test_the_rule_sees_patterns_figures_and_bits():
    want = torch.tensor([[0.0, 0.0], [1.0, 2.0], [float("nan"), 1.0]])
    value = torch.tensor([2.0])
    assert kernel_runs.agreement(want, want, value, "f32").agrees
    moved = want + torch.tensor([[0.0], [1e-4], [0.0]])
    assert not kernel_runs.agreement(moved, want, value, "f32").agrees
    assert not kernel_runs.agreement(moved, want, value, "f16").agrees  # close enough, but other bits
    assert not kernel_runs.agreement(want.nan_to_num(1.0), want, value, "f32").agrees
    assert not kernel_runs.agreement(want + torch.tensor([[1e-9], [0], [0]]), want, value, "f32").patterns


class TestNarrowBuffers:
    """SDPA004: float32 sums in buffers of half types, the maxima right behind them."""

    def calls(self, release, heads, dtype=F16):
        q, k, v = (
            torch.randn(1, heads, n, 128, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (1, 1024, 1024)
        )
        with emulate_mps(release):
            return [torch.nn.functional.scaled_dot_product_attention(q, k, v)[0, :, 0] for _ in range(3)]

    @pytest.mark.parametrize("heads", [2, 32])
    def test_the_lower_half_of_the_rows_is_wrong_and_nothing_is_nan(self, heads):
        right = self.calls("2.11", heads)[0]
        for output in self.calls("2.8", heads):
            wrong = (output != right).any(-1)
            assert wrong.tolist() == [True] * (heads // 2) + [False] * (heads // 2)
            assert output.isfinite().all()

    def test_it_depends_on_the_allocator_so_calls_differ(self):
        first, second, third = self.calls("2.10", 32)
        assert not torch.equal(first, second)
        assert not torch.equal(second, third)

    def test_the_second_pass_takes_the_sums_of_the_upper_half_for_maxima(self):
        """By hand: 32 blocks of 32 keys with equal scores; each block's sum is 32, each maximum 0."""
        q, k = torch.zeros(1, 2, 1, 64).half(), torch.zeros(1, 2, 1024, 64).half()
        v = torch.arange(1024.0)[None, None, :, None].expand(1, 2, 1024, 64).half()
        with emulate_mps("2.8"):
            lower, _ = torch.nn.functional.scaled_dot_product_attention(q, k, v)[0, :, 0, 0].tolist()
        assert lower == pytest.approx(511.5, rel=1e-3)  # equal numbers for equal maxima: no harm
        k[0, 1, 0] = 4.0  # one block of the upper row now sums less than the others: 31 * exp(-m) + 1
        q[0, 1] = 0.5
        with emulate_mps("2.8"):
            lower, _ = torch.nn.functional.scaled_dot_product_attention(q, k, v)[0, :, 0, 0].tolist()
        of_block = [[j for j in range(1024) if j % 256 // 8 == b] for b in range(32)]
        means = torch.tensor([sum(keys) / 32 for keys in of_block])
        sums = torch.full((32,), 32.0)
        sums[0] = 1 + 31 * torch.exp(torch.tensor(-16.0))
        share = (sums - 32).exp()
        assert lower == pytest.approx(float((means * share).sum() / share.sum()), rel=1e-3)


def test_a_query_whose_sizes_of_one_have_other_strides_is_copied_and_read_right():
    query = torch.randn(3, 1, 2, 64).permute(1, 2, 0, 3)
    key = torch.randn(1, 2, 40, 64)
    want = torch.nn.functional.scaled_dot_product_attention(query, key, key)
    for release in ("2.8", "2.11"):
        with emulate_mps(release):
            torch.testing.assert_close(
                torch.nn.functional.scaled_dot_product_attention(query, key, key), want, atol=1e-6, rtol=0
            )


def test_one_head_from_a_projection_counts_as_contiguous_and_is_misread_from_the_second_sequence_on():
    """The stride of a size of 1 is arbitrary; `is_contiguous` does not ask for it, the kernel multiplies by it."""
    query, key, value = (torch.randn(2, n, 1, 64).transpose(1, 2) for n in (4, 40, 40))
    assert query.is_contiguous()
    assert query.stride(1) == 64
    want = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    for release, read_right in (("2.8", False), ("2.11", False), ("2.12", True)):
        with emulate_mps(release):
            got = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        torch.testing.assert_close(got[0], want[0], atol=1e-6, rtol=0)
        assert torch.allclose(got[1], want[1], atol=1e-3) == read_right


def test_prefill_of_2_13_overflows_where_that_of_2_14_does_not():
    query, key = torch.full((1, 1, 9, 64), 60000.0, dtype=F16), torch.full((1, 1, 9, 64), 1e-4, dtype=F16)
    value = torch.randn(1, 1, 9, 64).half()
    for release, nan in (("2.13", 576), ("2.14", 0)):
        with emulate_mps(release):
            output = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        assert int(output.isnan().sum()) == nan
