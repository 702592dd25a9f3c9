"""Each defect: it shows under its trigger in exactly its releases, alone when named, and not when it is off."""

import subprocess
import sys

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mpsdiag.emulation.mode import emulate_mps
from mpsdiag.emulation.releases import DEFECTS, RELEASES, defects_of
from mpsdiag.emulation.selection import EmulatedAbort
from mpsdiag.sdpa.float64 import reference_attention

operator = torch.ops.aten._scaled_dot_product_attention_math_for_mps


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def off(output, *call, bound=0.05, **more):
    """Whether an output is wrong, or has another shape, by the float64 reference."""
    want = reference_attention(*call, **more)
    return output.shape != want.shape or not bool(((output.double() - want).abs() < bound).all())


def aborts(function, *call, **more):
    try:
        function(*call, **more)
    except EmulatedAbort:
        return True
    except RuntimeError as error:
        assert "is_causal" in str(error)  # noqa: PT017 - the only refusal that a trigger may meet instead
    return False


def dead_row():
    mask = torch.ones(1, 1, 10, 10, dtype=torch.bool)
    mask[..., 3, :] = False
    q = normal(1, 2, 10, 16)
    return bool(scaled_dot_product_attention(q, q, q, mask)[..., 3, :].isnan().all())


def swapped(batch):
    return tuple(normal(batch, 4, 3, 64, seed=s).transpose(1, 2) for s in range(3))


def strides_ignored():
    call = swapped(1)
    return off(scaled_dot_product_attention(*call), *call)


def batch_stride_assumed():
    call = swapped(3)
    output = scaled_dot_product_attention(*call)
    assert not off(output[:1], *(x[:1] for x in call)) or strides_ignored()
    return off(output, *call)


def out_of_bounds(dtype=torch.bfloat16, keys=1024):
    q, k, v = (normal(1, 4, n, 128, dtype=dtype, seed=n) for n in (1, keys, keys))
    first, second = (scaled_dot_product_attention(q, k, v) for _ in range(2))
    return off(first, q, k, v) and not torch.equal(first, second)


def bool_mask_permuted():
    call = normal(1, 1, 8, 64), normal(1, 1, 512, 64, seed=1), normal(1, 1, 512, 64, seed=2)
    mask = torch.ones(8, 512, dtype=torch.bool)
    return off(operator(*call, mask)[0], *call, mask, bound=1e-3)


def batch_of_the_mask_lost():
    q = normal(2, 4, 8, 64)
    mask = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    mask[0, 0, 4:, :4] = False
    return off(operator(q, q, q, mask)[0], q, q, q, mask, bound=1e-3)


def mask_not_in_log2():
    q = normal(1, 2, 64, 64)
    mask = torch.zeros(64, 64)
    mask[:, ::8] = -3.0
    return off(scaled_dot_product_attention(q, q, q, mask), q, q, q, mask, bound=1e-3)


def dropout_ignored():
    q = normal(1, 2, 4, 8)
    try:
        with_dropout = scaled_dot_product_attention(q, q, q, dropout_p=0.9)
    except NotImplementedError:
        return False
    return torch.equal(with_dropout, scaled_dot_product_attention(q, q, q))


def width_of_the_query():
    q, v = normal(1, 1, 16, 32), normal(1, 1, 16, 24, seed=1)
    output = scaled_dot_product_attention(q, q, v)
    assert output.shape[-1] in {24, 32}
    return off(output, q, q, v)


def shared_heads():
    q, k = normal(1, 4, 3, 8), normal(1, 2, 3, 8, seed=1)
    return aborts(scaled_dot_product_attention, q, k, k, enable_gqa=True)


def five_dimensions():
    q = normal(2, 2, 2, 3, 8)
    return aborts(scaled_dot_product_attention, q, q, q)


def causal_leak(dtype=torch.float16):
    q = torch.zeros(1, 1, 16, 48, dtype=dtype)
    v = torch.arange(16.0).view(1, 1, 16, 1).expand(1, 1, 16, 48).to(dtype)
    rows = scaled_dot_product_attention(q, q, v, is_causal=True)[0, 0, :, 0].tolist()
    means = [round(x, 3) for x in rows]
    want = [i / 2 for i in range(16)]
    leaked = [(i // 4 * 4 + 3) / 2 for i in range(16)]
    assert means in (want, leaked)
    return means == leaked


def scale_kept():
    q, k, v = (normal(1, 2, 10, 20, seed=s) for s in range(3))
    first = scaled_dot_product_attention(q, k, v, scale=1.0)
    return torch.equal(scaled_dot_product_attention(q, k, v, scale=0.1), first)


def mask_shape_kept():
    q = normal(1, 1, 6, 20)
    causal = torch.zeros(1, 1, 6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf"))
    scaled_dot_product_attention(q, q, q, torch.zeros(1, 1, 1, 6))
    return off(scaled_dot_product_attention(q, q, q, causal), q, q, q, causal)


def mask_dtype_kept():
    q = normal(1, 1, 6, 20, dtype=torch.float16)
    mask = normal(6, 6, seed=1)
    first = scaled_dot_product_attention(q, q, q, mask)
    assert not off(first, q, q, q, mask)
    return off(scaled_dot_product_attention(q, q, q, mask.half()), q, q, q, mask.half())


def causal_and_mask():
    q = normal(1, 1, 4, 64)
    return aborts(scaled_dot_product_attention, q, q, q, torch.zeros(4, 4), is_causal=True)


def scores_beyond_the_limit():
    big = torch.empty(1, 12, 29640, 128)  # never read nor written
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpsdiag.emulation.operator.graph_attention", lambda *_, **__: (big, None))
        patch.setattr("mpsdiag.emulation.operator.prefill", lambda *_, **__: big)
        patch.setattr("mpsdiag.emulation.faults.corrupt_far_heads", lambda output, *_: output)
        patch.setattr("mpsdiag.emulation.operator.composite_attention", lambda *_, **__: (big, None))
        return aborts(scaled_dot_product_attention, big, big, big)


def far_heads(dtype=torch.float32):
    q, k, v = (normal(1, 4, 10, 20, dtype=dtype, seed=s) for s in range(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpsdiag.emulation.faults.SCORES_TO_CORRUPTION", 2 * 100)
        output = scaled_dot_product_attention(q, k, v)
    assert not off(output[:, :2], q[:, :2], k[:, :2], v[:, :2])
    wrong = off(output, q, k, v)
    assert not wrong or output.abs().max() > 10 * v.abs().max()
    return wrong


def nan_swallowed():
    q, k = normal(1, 1, 4, 64), normal(1, 1, 4, 64, seed=1)
    q[0, 0, 0, 0] = float("nan")
    return bool(scaled_dot_product_attention(q, k, k)[0, 0, 0].isfinite().all())


def scores_overflow():
    x = torch.full((1, 2, 23, 80), 256.0, dtype=torch.float16)
    return bool(scaled_dot_product_attention(x, x, x).isnan().any())


def baddbmm_reads_its_input():
    before = torch.full((1, 2, 2), float("nan"))
    return bool(torch.baddbmm(before, normal(1, 2, 2), normal(1, 2, 2), beta=0).isnan().any())


def bool_row_by_the_operator():
    q = normal(1, 1, 4, 64)
    mask = torch.zeros(64, 64, dtype=torch.bool)[:4, :4]  # nothing but False around it either
    return bool(operator(q, q, q, mask)[0].isnan().all())


def far_batch():
    """The second sequence begins 2**31 elements behind the first; the memory between is never touched."""
    q, k, v = normal(2, 1, 9, 64, dtype=torch.float16).tile(3, 1, 1, 1).chunk(3)
    far = torch.empty(2**31 + 128 + k.numel(), dtype=torch.float16).as_strided(k.shape, (2**31 + 128, 64 * 9, 64, 1))
    far.copy_(k)
    output = scaled_dot_product_attention(q, far, v)
    assert not off(output[:1], q[:1], k[:1], v[:1])
    return off(output, q, k, v)


def releases(first, last):
    return RELEASES[RELEASES.index(first) : RELEASES.index(last) + 1]


# From the facts, not from the code: the trigger, the releases in which it must show.
SHOWS = {
    "SDPA001": (dead_row, releases("2.0", "2.8")),
    "SDPA002": (strides_ignored, ("2.8",)),
    "SDPA003": (batch_stride_assumed, releases("2.8", "2.11")),
    "SDPA004": (out_of_bounds, releases("2.8", "2.10")),
    "SDPA005": (bool_mask_permuted, releases("2.8", "2.11")),
    "SDPA006": (batch_of_the_mask_lost, releases("2.8", "2.12")),
    "SDPA007": (mask_not_in_log2, ()),
    "SDPA008": (dropout_ignored, ("2.12",)),
    "SDPA009": (width_of_the_query, releases("2.5", "2.11")),
    "SDPA010": (shared_heads, releases("2.5", "2.6")),
    "SDPA011": (five_dimensions, releases("2.5", "2.6")),
    "SDPA014": (causal_leak, releases("2.10", "2.12")),
    "SDPA015": (scale_kept, releases("2.5", "2.12")),
    "SDPA016": (lambda: mask_shape_kept() | mask_dtype_kept(), (*releases("2.5", "2.6"), *releases("2.10", "2.15"))),
    "SDPA017": (causal_and_mask, releases("2.8", "2.12")),
    "SDPA018": (far_heads, releases("2.5", "2.12")),
    "SDPA019": (scores_beyond_the_limit, releases("2.5", "2.12")),
    "SDPA020": (nan_swallowed, ("2.13",)),
    "SDPA021": (scores_overflow, releases("2.0", "2.9")),
    "SDPA026": (baddbmm_reads_its_input, releases("2.0", "2.13")),
    "SDPA029": (bool_row_by_the_operator, releases("2.8", "2.12")),
    "SDPA030": (far_batch, ("2.13",)),
}
NEEDS_OPERATOR = {"SDPA005", "SDPA006", "SDPA029"}
# The trigger on the left finds the defect on the right as well, so that one is left out.
SEEN_TOO = {"SDPA006": "SDPA005", "SDPA029": "SDPA001", "SDPA003": "SDPA002"}
# Named outside its releases, a defect shows where a release has the path at all.
NAMED_ELSEWHERE = {
    "SDPA001": "2.9",
    "SDPA002": "2.12",
    "SDPA003": "2.14",
    "SDPA004": "2.13",
    "SDPA005": "2.12",
    "SDPA006": "2.13",
    "SDPA007": "2.13",
    "SDPA008": "2.13",
    "SDPA009": "2.12",
    "SDPA010": "2.7",
    "SDPA011": "2.7",
    "SDPA014": "2.15",
    "SDPA015": "2.13",
    "SDPA016": "2.9",
    "SDPA017": "2.13",
    "SDPA018": "2.13",
    "SDPA020": "2.14",
    "SDPA021": "2.9",
    "SDPA026": "2.14",
    "SDPA029": "2.13",
    "SDPA030": "2.14",
}


MACOS = {"SDPA014": 26, "SDPA018": 26}  # the others on 15


def shows(defect, release, defects):
    if defect in NEEDS_OPERATOR and release in RELEASES[:5]:
        return False
    with torch.no_grad(), emulate_mps(release, MACOS.get(defect, 15), defects):
        return SHOWS[defect][0]()


def test_all_defects_are_here():
    assert set(SHOWS) == set(DEFECTS)


@pytest.mark.parametrize("defect", SHOWS)
def test_shows_in_exactly_its_releases(defect):
    want, macos = SHOWS[defect][1], MACOS.get(defect, 15)
    other = SEEN_TOO.get(defect)
    seen = tuple(r for r in RELEASES if shows(defect, r, [d for d in defects_of(r, macos) if d != other]))
    assert seen == want
    assert DEFECTS[defect].releases == want
    assert all((defect in defects_of(r, macos)) == (r in want) for r in RELEASES)


@pytest.mark.parametrize("defect", SHOWS)
def test_shows_alone_and_not_when_off(defect):
    named = SHOWS[defect][1] or (NAMED_ELSEWHERE[defect],)
    for release in named:
        assert shows(defect, release, (defect,))
        assert not shows(defect, release, ())


@pytest.mark.parametrize("defect", NAMED_ELSEWHERE)
def test_named_outside_its_releases_it_is_applied_too(defect):
    assert shows(defect, NAMED_ELSEWHERE[defect], (defect,))


class TestLimits:
    """Where a defect must not show."""

    def test_gradients_escape_the_operators_defects(self):
        q = normal(1, 2, 3, 8).requires_grad_()
        with emulate_mps("2.6"):
            assert scaled_dot_product_attention(q, q, q, enable_gqa=True).isfinite().all()
            assert scaled_dot_product_attention(q[0], q[0], q[0]).shape == (2, 3, 8)

    def test_contiguous_and_one_row_tensors_are_read_right(self):
        contiguous = tuple(x.contiguous() for x in swapped(3))
        one_row = tuple(normal(2, 1, 4, 64, seed=s).transpose(1, 2) for s in range(3))
        other = tuple(normal(2, 64, 4, 3, seed=s).permute(0, 2, 3, 1) for s in range(3))  # made contiguous first
        for call in (contiguous, one_row, other):
            with emulate_mps("2.8"):
                assert not off(scaled_dot_product_attention(*call), *call)

    def test_long_queries_are_read_right(self):
        call = tuple(normal(2, 9, 3, 64, seed=s).transpose(1, 2) for s in range(3))
        with emulate_mps("2.8"):
            assert not off(scaled_dot_product_attention(*call), *call)

    @pytest.mark.parametrize(("dtype", "keys"), [(torch.float32, 1024), (torch.bfloat16, 1023)])
    def test_out_of_bounds_needs_half_types_and_two_passes(self, dtype, keys):
        with emulate_mps("2.8"):
            assert not out_of_bounds(dtype, keys)

    def test_a_zero_mask_avoids_the_two_pass_kernel(self):
        q, k = normal(1, 4, 1, 128, dtype=torch.bfloat16), normal(1, 4, 1024, 128, dtype=torch.bfloat16)
        with emulate_mps("2.10"):
            output = scaled_dot_product_attention(q, k, k, torch.zeros(1, 1, 1, 1024, dtype=torch.bfloat16))
        assert not off(output, q, k, k)

    def test_the_leak_needs_half_types_and_is_causal(self):
        q = normal(1, 1, 16, 48, dtype=torch.float16)
        mask = torch.zeros(16, 16, dtype=torch.float16).masked_fill(torch.ones(16, 16).triu(1).bool(), float("-inf"))
        with emulate_mps("2.11", 26):
            assert not causal_leak(torch.float32)
            assert causal_leak(torch.bfloat16)
            assert not off(scaled_dot_product_attention(q, q, q, mask), q, q, q, mask)

    def test_each_emulation_has_its_own_graph_cache(self):
        q = normal(1, 1, 10, 20)
        with emulate_mps("2.12"):
            scaled_dot_product_attention(q, q, q, scale=1.0)
        with emulate_mps("2.12"):
            assert not off(scaled_dot_product_attention(q, q, q, scale=0.1), q, q, q, scale=0.1)

    def test_another_shape_is_another_graph(self):
        q, longer = normal(1, 1, 10, 20), normal(1, 1, 11, 20)
        with emulate_mps("2.12"):
            scaled_dot_product_attention(q, q, q, scale=1.0)
            output = scaled_dot_product_attention(longer, longer, longer, scale=0.1)
        assert not off(output, longer, longer, longer, scale=0.1)

    def test_mask_shapes_share_a_graph_only_before_masks_are_expanded(self):
        with emulate_mps("2.10"):
            assert not mask_shape_kept()
            assert mask_dtype_kept()
        with emulate_mps("2.5"):
            assert mask_shape_kept()

    @pytest.mark.parametrize(("macos", "leaks"), [(13, False), (14, False), (15, False), (26, True)])
    def test_the_leak_is_known_on_macos_26_only(self, macos, leaks):
        with emulate_mps("2.11", macos):
            assert causal_leak() == leaks
        with emulate_mps("2.11", macos, ("SDPA014",)):  # named, it is shown anywhere
            assert causal_leak()

    @pytest.mark.parametrize("macos", [13, 14, 15])
    def test_heads_are_not_corrupt_where_so_many_scores_abort(self, macos):
        with emulate_mps("2.11", macos):
            assert not far_heads()
            assert scores_beyond_the_limit()
        with emulate_mps("2.11", 26):
            assert far_heads()

    @pytest.mark.parametrize("macos", [13, 14, 15, 26])
    def test_baddbmm_is_torchs_own_and_on_every_macos(self, macos):
        with emulate_mps("2.13", macos):
            assert baddbmm_reads_its_input()

    def test_scores_beyond_the_limit_do_not_abort_on_macos_26(self):
        with emulate_mps("2.11", 26):
            assert not scores_beyond_the_limit()

    def test_three_dimensions_raise_and_need_to_be_contiguous(self):
        q = normal(16, 16, 80)
        with emulate_mps("2.6"), pytest.raises(IndexError, match=r"range of \[-3, 2\], but got 3"):
            scaled_dot_product_attention(q, q, q, torch.ones(1, 16, 16))
        strided = normal(16, 16, 80).transpose(0, 1)
        with emulate_mps("2.5"):
            assert not off(scaled_dot_product_attention(strided, q, q), strided, q, q)

    def test_swallowed_nan_comes_back_when_the_defect_is_off(self):
        q = normal(1, 1, 4, 64)
        q[0, 0, 0, 0] = float("nan")
        for release, defects in (("2.13", ()), ("2.14", None), ("2.12", None)):
            with emulate_mps(release, defects=defects):
                assert scaled_dot_product_attention(q, q, q)[0, 0, 0].isnan().all()

    def test_runs_repeat_and_calls_differ(self):
        q, k = normal(1, 4, 1, 128, dtype=torch.bfloat16), normal(1, 4, 1024, 128, dtype=torch.bfloat16)

        def two_calls():
            with emulate_mps("2.8"):
                return [scaled_dot_product_attention(q, k, k) for _ in range(2)]

        first, again = two_calls(), two_calls()
        torch.testing.assert_close(first, again, equal_nan=True)
        assert not torch.equal(first[0].nan_to_num(), first[1].nan_to_num())


def test_an_abort_can_really_end_the_process():
    code = (
        "import torch\n"
        "from mpsdiag import emulate_mps\n"
        "q, k = torch.zeros(1, 4, 2, 8), torch.zeros(1, 2, 2, 8)\n"
        "with emulate_mps('2.5', on_abort='process'):\n"
        "    torch.nn.functional.scaled_dot_product_attention(q, k, k, enable_gqa=True)\n"
    )
    child = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert child.returncode == -6
    assert "emulated abort: mps_matmul" in child.stderr
