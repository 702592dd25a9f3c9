"""Attention inside other torch functions, and calls whose arguments override torch's functions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function

from mpsdiag.emulation.mode import emulate_mps, suspended

HEADS, WIDTH = 4, 64


def module(kind, dtype=torch.float32):
    torch.manual_seed(0)
    made = {
        "attention": lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
        "layer": lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, 128, batch_first=True),
        "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 128, batch_first=True), 2),
        "decoder": lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, 128, batch_first=True), 1),
    }[kind]()
    return made.eval().to(dtype)


def run(kind, made, x, padding):
    if kind == "attention":
        return made(x, x, x, key_padding_mask=padding, need_weights=False)[0]
    if kind == "decoder":
        return made(x, x, memory_key_padding_mask=padding)
    return made(x, src_key_padding_mask=padding)


@pytest.fixture
def x():
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def padding():
    """The second sequence has nothing to attend to."""
    return torch.tensor([[False] * 5, [True] * 5])


@pytest.mark.parametrize("kind", ["attention", "layer", "encoder", "decoder"])
def test_a_fully_masked_row_in_torchs_own_layers(kind, x, padding):
    made = module(kind)
    for release, nan in (("2.4", True), ("2.8", True), ("2.9", False), ("2.14", False)):
        with torch.no_grad(), emulate_mps(release):
            output = run(kind, made, x, padding)
        assert output[0].isfinite().all()
        assert bool(output[1].isnan().all()) == nan
        assert bool(output[1].isfinite().all()) != nan
        with emulate_mps(release):  # with gradients: the composite path
            assert bool(run(kind, made, x, padding).isnan().any()) == (release == "2.4")


def test_the_masked_rows_are_zeros_before_the_last_projection(x, padding):
    made = module("attention")
    with torch.no_grad(), emulate_mps("2.9"):
        output = run("attention", made, x, padding)
    torch.testing.assert_close(output[1], made.out_proj.bias.detach().expand(5, WIDTH))


@pytest.mark.parametrize("release", ["2.8", "2.12", "2.14"])
def test_multi_head_attention_is_its_own_steps_around_emulated_attention(release, x):
    """In bfloat16, where another kernel means other bits."""
    made, x = module("attention", torch.bfloat16), x.repeat(1, 3, 1).bfloat16()
    with torch.no_grad():
        parts = F.linear(x, made.in_proj_weight, made.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        with emulate_mps(release):
            got = made(x, x, x, need_weights=False)[0]
            attended = F.scaled_dot_product_attention(q, k, v)
        stock = F.scaled_dot_product_attention(q, k, v)
        want = made.out_proj(attended.transpose(1, 2).flatten(-2))
    assert torch.equal(got, want)
    assert not torch.equal(attended, stock)


def test_what_stands_under_the_public_name_is_called_inside_too(x, padding, monkeypatch):
    stock, seen = F.scaled_dot_product_attention, []

    def counted(*args, **kwargs):
        seen.append(stock(*args, **kwargs))
        return seen[-1].nan_to_num(0.0)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    with torch.no_grad(), emulate_mps("2.8"):
        output = run("attention", module("attention"), x, padding)
    assert seen[0].isnan().any()
    assert output.isfinite().all()


def test_suspended_reaches_into_composite_functions(x, padding):
    with torch.no_grad(), emulate_mps("2.8"), suspended():
        assert run("attention", module("attention"), x, padding).isfinite().all()


class Seen(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_other_modes_above_and_beneath_change_nothing(x, padding):
    made = module("layer")
    with torch.no_grad():
        with Seen() as beneath, emulate_mps("2.8"):
            assert run("layer", made, x, padding)[1].isnan().all()
        with emulate_mps("2.8"), Seen() as above:
            assert run("layer", made, x, padding)[1].isnan().all()
    assert "linear" in beneath.names
    assert "multi_head_attention_forward" in above.names


def test_a_function_that_asks_in_another_way_is_left_alone(x):
    """It looks the question up in a module, so it cannot be kept from asking: its attention is the CPU's."""

    def attend(q):
        if torch.overrides.has_torch_function((q,)):
            return torch.overrides.handle_torch_function(attend, (q,), q)
        return F.scaled_dot_product_attention(q, q, q)

    with torch.no_grad(), emulate_mps("2.8"):
        assert torch.equal(attend(x[None]), suspended_attention(x[None]))


def attend_as_torch_does(q, mask):
    if has_torch_function((q,)):
        return handle_torch_function(attend_as_torch_does, (q,), q, mask)
    return F.scaled_dot_product_attention(q, q, q, mask)


def test_a_function_written_as_torchs_own_are_is_emulated(x):
    with torch.no_grad(), emulate_mps("2.8"):
        assert attend_as_torch_does(x[None], torch.zeros(5, 5, dtype=torch.bool)).isnan().all()


def suspended_attention(q):
    with suspended():
        return F.scaled_dot_product_attention(q, q, q)


class TestOverridingArguments:
    q = torch.randn(1, 2, 4, 64, generator=torch.Generator().manual_seed(2))
    k = torch.randn(1, 2, 6, 64, generator=torch.Generator().manual_seed(3))

    @pytest.mark.parametrize("make", [causal_lower_right, causal_upper_left])
    @pytest.mark.parametrize("release", ["2.4", "2.8", "2.12", "2.14"])
    def test_causal_biases(self, make, release):
        want = F.scaled_dot_product_attention(self.q, self.k, self.k, attn_mask=make(4, 6))
        with emulate_mps(release):
            got = F.scaled_dot_product_attention(self.q, self.k, self.k, attn_mask=make(4, 6))
        torch.testing.assert_close(got, want, atol=1e-6, rtol=0)

    def test_what_an_override_calls_is_emulated(self):
        """More queries than keys, aligned to the lower right: the first rows see nothing."""
        with pytest.warns(UserWarning, match="Lower right causal bias"):
            call = (self.k, self.q, self.q, causal_lower_right(6, 4))
        with torch.no_grad():
            for release, nan in (("2.8", True), ("2.9", False)):
                with emulate_mps(release):
                    assert bool(F.scaled_dot_product_attention(*call)[..., :2, :].isnan().all()) == nan

    @pytest.mark.parametrize("position", range(4))
    def test_a_subclass_keeps_its_type_and_gets_the_original(self, position):
        class Named(torch.Tensor):
            pass

        given = [self.k, self.k, self.k, torch.zeros(6, 6, dtype=torch.bool)]
        given[position] = given[position].as_subclass(Named)
        with torch.no_grad(), emulate_mps("2.8"):
            output = F.scaled_dot_product_attention(*given)
        assert type(output) is Named
        assert output.isfinite().all()

    def test_an_object_without_a_dtype_answers_for_itself(self):
        class Mask:
            @classmethod
            def __torch_function__(cls, func, types, args=(), kwargs=None):
                return func, types, len(args), sorted(kwargs or {})

        stock = F.scaled_dot_product_attention(self.q, self.k, self.k, attn_mask=Mask())
        for release in ("2.4", "2.8", "2.14"):
            with emulate_mps(release):
                assert F.scaled_dot_product_attention(self.q, self.k, self.k, attn_mask=Mask()) == stock

    def test_parameters_are_plain(self):
        q = nn.Parameter(self.k)
        with torch.no_grad(), emulate_mps("2.8"):
            assert F.scaled_dot_product_attention(q, q, q, torch.zeros(6, 6, dtype=torch.bool)).isnan().all()

    def test_the_operator_and_baddbmm_leave_subclasses_alone(self):
        class Named(torch.Tensor):
            pass

        nan = torch.full((1, 2, 2), float("nan")).as_subclass(Named)
        with emulate_mps("2.8"):
            assert torch.baddbmm(nan, torch.ones(1, 2, 2), torch.ones(1, 2, 2), beta=0).isfinite().all()
            with pytest.raises(NotImplementedError):
                torch.ops.aten._scaled_dot_product_attention_math_for_mps(self.q.as_subclass(Named), self.k, self.k)
