import json
import pickle
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import overrides
from torch.nn.functional import scaled_dot_product_attention

from mpsdiag import emulate_mps as public_emulate_mps
from mpsdiag.emulation.mode import active, emulate_mps, in_effect, suspended
from mpsdiag.emulation.releases import DEFECTS, RELEASES, defects_of
from mpsdiag.emulation.selection import EmulatedAbort, Emulation
from mpsdiag.errors import BadInput
from mpsdiag.sdpa.float64 import reference_attention
from mpsdiag.sdpa.safe import safe_scaled_dot_product_attention


@pytest.fixture
def dead_row_call():
    torch.manual_seed(0)
    mask = torch.ones(16, 16, dtype=torch.bool).tril()
    mask[2] = False
    return *(torch.randn(1, 2, 16, 64) for _ in range(3)), mask


def is_nan(call):
    return bool(scaled_dot_product_attention(*call)[0, 0, 2].isnan().all())


def test_nests_and_restores(dead_row_call):
    before = scaled_dot_product_attention(*dead_row_call)
    with emulate_mps("2.8"):
        assert is_nan(dead_row_call)
        with emulate_mps("2.9"):
            assert not is_nan(dead_row_call)
            with emulate_mps("2.4"):
                assert is_nan(dead_row_call)
            assert active() == Emulation("2.9")
        assert is_nan(dead_row_call)
    assert active() is None
    assert overrides._get_current_function_mode() is None
    assert torch.equal(scaled_dot_product_attention(*dead_row_call), before)


def test_restores_after_an_exception():
    with pytest.raises(KeyError), emulate_mps("2.8"), suspended():
        raise KeyError
    assert active() is None
    assert overrides._get_current_function_mode() is None


def test_one_object_can_be_entered_again_and_within_itself(dead_row_call):
    mode = emulate_mps("2.8")
    with mode, mode:
        assert is_nan(dead_row_call)
    with mode:
        assert is_nan(dead_row_call)
    assert active() is None


def test_holds_for_one_thread_only(dead_row_call):
    seen = []

    def elsewhere():
        seen.append((active(), is_nan(dead_row_call)))
        with emulate_mps("2.7"):
            seen.append((active(), is_nan(dead_row_call)))

    with emulate_mps("2.9"):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert active() == Emulation("2.9")
    assert seen == [(None, False), (Emulation("2.7"), True)]


def test_suspended_is_plain_cpu_again(dead_row_call):
    plain = scaled_dot_product_attention(*dead_row_call)
    with emulate_mps("2.8"):
        with suspended():
            assert active() is None
            assert not in_effect("cpu")
            assert torch.equal(scaled_dot_product_attention(*dead_row_call), plain)
            with pytest.raises(NotImplementedError):
                torch.ops.aten._scaled_dot_product_attention_math_for_mps(*dead_row_call)
            with emulate_mps("2.7"):
                assert is_nan(dead_row_call)
        assert is_nan(dead_row_call)


def test_in_effect():
    assert in_effect("mps")
    assert in_effect(torch.device("mps", 0))
    assert not in_effect("cpu")
    assert not in_effect("cuda:0")
    with emulate_mps("2.15"):
        assert in_effect("cpu")
        assert not in_effect("cuda")


def test_a_function_put_in_front_of_the_public_name_is_seen_through(dead_row_call, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", safe_scaled_dot_product_attention)
    with emulate_mps("2.8"):
        assert is_nan(dead_row_call)  # this module's name still holds torch's own function


def test_other_devices_are_left_alone(dead_row_call):
    q, k, v, mask = (x.to("meta") for x in dead_row_call)
    with emulate_mps("2.8"):
        assert scaled_dot_product_attention(q, k, v, mask).device.type == "meta"


def test_torch_says_itself_what_is_malformed():
    q = torch.zeros(1, 1, 2, 4)
    malformed = [(q, q.half(), q), (q[0, 0, 0], q, q), (q, q, q, torch.ones(2, 2, dtype=torch.long))]
    for arguments in malformed:
        with pytest.raises(RuntimeError) as stock:
            scaled_dot_product_attention(*arguments)
        with emulate_mps("2.8"), pytest.raises(RuntimeError) as emulated:
            scaled_dot_product_attention(*arguments)
        assert str(emulated.value) == str(stock.value)


@pytest.mark.parametrize("given_release", ["2.8", "2.8.0", "2.8.1", "2.8.0+cpu", "2.8.0a0+git"])
def test_releases_are_named_with_or_without_the_patch(given_release):
    assert Emulation(given_release).release == "2.8"
    assert Emulation(given_release) == Emulation("2.8", 15, None)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("1.9",), "Unknown torch release '1.9'"),
        (("2.16",), "Choose from: 2.0"),
        (("nightly",), "nightly"),
        (("",), "torch release"),
        (("2.8", 12), "no macOS 12"),
        (("2.8", 99), "no macOS 99"),
        (("2.8", 16), "choose 13, 14, 15 or 26"),
        (("2.8", 27), "There is no macOS 27 to emulate: nothing known of attention there differs from macOS 26"),
        (("2.8", 15, ("SDPA999",)), "Unknown defect 'SDPA999'"),
        (("2.8", 15, ["SDPA01"]), "Did you mean 'SDPA0"),
    ],
)
def test_bad_input_in_a_sentence(arguments, sentence):
    with pytest.raises(BadInput, match=sentence):
        emulate_mps(*arguments)


def test_a_release_is_a_text_because_the_number_2_10_is_2_1():
    with pytest.raises(BadInput, match=r'put it in quotes, as in emulate_mps\("2.10"\)'):
        emulate_mps(2.10)


def test_the_macos_may_be_given_in_digits():
    assert Emulation("2.8", macos="15") == Emulation("2.8", macos=15)
    with pytest.raises(BadInput, match="no macOS 16 to emulate"):
        Emulation("2.8", macos="16")


def test_the_spec_travels():
    spec = Emulation("2.8", 14, ("SDPA001",))
    assert pickle.loads(pickle.dumps(spec)) == spec  # noqa: S301 - our own bytes
    fields = json.loads(json.dumps(vars(spec)))
    assert Emulation(fields["release"], fields["macos"], tuple(fields["defects"])) == spec
    assert spec.describe() == "emulated MPS of torch 2.8 on macOS 14, defects: SDPA001"
    assert Emulation("2.8").describe() == "emulated MPS of torch 2.8 on macOS 15"
    assert emulate_mps("2.8", defects="SDPA001").emulation == Emulation("2.8", 15, ("SDPA001",))
    assert public_emulate_mps is emulate_mps


def test_none_is_the_releases_own_defects_and_empty_is_none(dead_row_call):
    assert Emulation("2.8").shown == defects_of("2.8") != ()
    assert Emulation("2.8", defects=()).shown == ()
    for release in ("2.0", "2.4", "2.5", "2.8"):
        with emulate_mps(release, defects=()):
            output = scaled_dot_product_attention(*dead_row_call)
        torch.testing.assert_close(output.double(), reference_attention(*dead_row_call), atol=1e-5, rtol=0)
    with emulate_mps("2.9", defects=("SDPA001",)):
        assert is_nan(dead_row_call)


def test_every_defect_is_of_known_releases_and_in_order():
    assert list(DEFECTS) == sorted(DEFECTS)
    assert all(set(d.releases) <= set(RELEASES) for d in DEFECTS.values())
    assert EmulatedAbort.__base__ is RuntimeError


@st.composite
def plain_calls(draw):
    rank = draw(st.sampled_from([3, 4, 5]))
    lead = draw(st.lists(st.integers(1, 3), min_size=rank - 2, max_size=rank - 2))
    rows, keys = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    width = draw(st.sampled_from([8, 48, 64, 72]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    q, k, v = (torch.randn(*lead, n, width, generator=generator) for n in (rows, keys, keys))
    kind = draw(st.sampled_from(["none", "causal", "bool", "float"]))
    keep = torch.rand(*lead, rows, keys, generator=generator) < 0.6
    mask = {"bool": keep, "float": torch.zeros(keep.shape).masked_fill(~keep, float("-inf"))}.get(kind)
    return q, k, v, mask, 0.0, kind == "causal"


@settings(max_examples=150, deadline=None)
@given(call=plain_calls(), release=st.sampled_from(RELEASES), macos=st.sampled_from([14, 15, 26]))
def test_without_defects_every_release_gives_attention(call, release, macos):
    q, k, v, mask, _, causal = call
    with emulate_mps(release, macos, ()):
        output = scaled_dot_product_attention(*call)
    torch.testing.assert_close(output.double(), reference_attention(q, k, v, mask, causal), atol=2e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(call=plain_calls(), release=st.sampled_from(RELEASES))
def test_safe_attention_is_right_on_every_release_in_both_modes(call, release):
    q, k, v, mask, _, causal = call
    if release in {"2.5", "2.6"} and q.dim() != 4:
        return  # those fail, whatever the mask
    want = reference_attention(q, k, v, mask, causal)
    q.requires_grad_()
    with emulate_mps(release):
        trained = safe_scaled_dot_product_attention(*call)
        with torch.no_grad():
            evaluated = safe_scaled_dot_product_attention(*call)
    trained.sum().backward()
    assert q.grad.isfinite().all()
    for output in (trained.detach(), evaluated):
        torch.testing.assert_close(output.double(), want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("release", RELEASES)
def test_results_of_the_operator_carry_no_gradient(release):
    q = torch.randn(1, 1, 4, 8)
    with emulate_mps(release):
        assert scaled_dot_product_attention(q.requires_grad_(), q, q).requires_grad
        with torch.no_grad():
            assert not scaled_dot_product_attention(q, q, q).requires_grad


@pytest.mark.parametrize("grad", [False, True])
def test_autocast_narrows_the_call_and_nothing_inside_it(grad):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 16, 64, requires_grad=grad) for _ in range(3))
    mask = torch.ones(16, 16, dtype=torch.bool).tril()
    narrow = [x.detach().bfloat16().requires_grad_(grad) for x in (q, k, v)]
    with emulate_mps("2.12"):
        want = scaled_dot_product_attention(*narrow, mask)
        with torch.autocast("cpu", torch.bfloat16):
            for own_mask in (mask, torch.zeros(16, 16).masked_fill(~mask, float("-inf"))):
                got = scaled_dot_product_attention(q, k, v, own_mask)
                assert got.dtype == torch.bfloat16
                assert torch.equal(got, want)
            direct = torch.ops.aten._scaled_dot_product_attention_math_for_mps(q, k, v, mask)[0]
    assert direct.dtype == torch.float32
    torch.testing.assert_close(direct.double(), reference_attention(q, k, v, mask), atol=1e-5, rtol=0)


def test_suspended_holds_through_a_backward_pass(dead_row_call):
    q, k, v, mask = dead_row_call
    q = q.clone().requires_grad_()
    seen = []

    class Attend(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, upstream):
            seen.append((active(), bool(scaled_dot_product_attention(q.detach(), k, v, mask).isnan().any())))
            return upstream

    with emulate_mps("2.8"):
        Attend.apply(q).sum().backward()
        with suspended():
            Attend.apply(q).sum().backward()
    assert seen == [(Emulation("2.8"), True), (None, False)]
