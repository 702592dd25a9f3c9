import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import mpsdiag
from mpsdiag.sdpa.float64 import reference_attention
from mpsdiag.sdpa.safe import open_dead_rows, safe_scaled_dot_product_attention, zero_rows

NEVER = float("-inf")
# CPU attention gives zeros in dead rows, and finite gradients, from 2.5 on.
EXACT = pytest.mark.skipif(torch.__version__.startswith("2.4"), reason="CPU attention of torch 2.4 gives NaN")


def left_padded(batch=2, length=6, pads=(3, 0)):
    """A causal bool mask (B, 1, L, L) of left-padded sequences, as transformers makes it."""
    position = torch.arange(length)
    real = torch.stack([position >= n for n in pads[:batch]])
    return (position[:, None] >= position)[None, None] & real[:, None, :, None] & real[:, None, None, :]


@st.composite
def calls(draw):
    batch, heads = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4]))
    shared = draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0]))
    rows, keys = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    width = draw(st.sampled_from([4, 8, 16]))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    q = torch.randn(batch, heads, rows, width, generator=generator).to(dtype)
    k, v = (torch.randn(batch, shared, keys, width, generator=generator).to(dtype) for _ in range(2))
    kind = draw(st.sampled_from(["bool", "float", "finfo", "causal", "none"]))
    shape = draw(
        st.sampled_from([(rows, keys), (batch, 1, rows, keys), (batch, heads, rows, keys), (batch, 1, 1, keys)])
    )
    keep = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    keep &= torch.rand(*shape[:-1], 1, generator=generator) < 0.7
    mask = None
    if kind == "bool":
        mask = keep
    elif kind == "float":
        mask = torch.where(keep, torch.randn(shape, generator=generator), NEVER).to(dtype)
    elif kind == "finfo":
        mask = torch.zeros(shape, dtype=dtype).masked_fill_(~keep, torch.finfo(dtype).min)
    settings_ = {
        "attn_mask": mask,
        "is_causal": kind == "causal",
        "scale": draw(st.none() | st.floats(0.05, 2.0)),
        "enable_gqa": shared != heads,
    }
    return q, k, v, settings_, torch.randn(q.shape, generator=generator).to(dtype)


@EXACT
@settings(max_examples=120, deadline=None)
@given(call=calls())
def test_bit_equal_to_cpu_attention_forward_and_backward(call):
    q, k, v, arguments, upstream = call
    with torch.no_grad():
        want = scaled_dot_product_attention(q, k, v, **arguments)
        got = safe_scaled_dot_product_attention(q, k, v, **arguments)
    assert torch.equal(got, want)
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    want = scaled_dot_product_attention(*inputs, **arguments)
    want_grads = torch.autograd.grad(want, inputs, upstream)
    got = safe_scaled_dot_product_attention(*inputs, **arguments)
    got_grads = torch.autograd.grad(got, inputs, upstream)
    assert torch.equal(got, want)
    assert got.stride() == want.stride()
    assert all(torch.equal(a, b) for a, b in zip(got_grads, want_grads, strict=True))


@EXACT
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bit_equal_at_lengths_where_the_kernel_works_in_blocks(dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 700, 32, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = left_padded(2, 700, (600, 5))
    want, got = (f(q, k, v, mask) for f in (scaled_dot_product_attention, safe_scaled_dot_product_attention))
    assert torch.equal(got, want)
    grads = [torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (want, got)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@EXACT
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_every_rank(rank):
    torch.manual_seed(0)
    shape = (2, 2, 3, 5, 4)[-rank:]
    q, k, v = (torch.randn(shape) for _ in range(3))
    mask = torch.rand(*shape[:-1], 5) < 0.5
    mask[..., 2, :] = False
    got = safe_scaled_dot_product_attention(q, k, v, mask)
    assert torch.equal(got, scaled_dot_product_attention(q, k, v, mask))
    assert not got[..., 2, :].any()
    torch.testing.assert_close(got.double(), reference_attention(q, k, v, mask), atol=1e-6, rtol=1e-5)


@EXACT
def test_a_learned_bias_gets_the_same_gradient():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 6, 4) for _ in range(3))
    bias = torch.where(left_padded(), torch.randn(2, 1, 6, 6), NEVER)
    grads = []
    for attention in (scaled_dot_product_attention, safe_scaled_dot_product_attention):
        learned = bias.clone().requires_grad_()
        attention(q, k, v, learned).square().sum().backward()
        grads.append(learned.grad)
    assert torch.equal(*grads)
    assert grads[0].isfinite().all()


@EXACT
def test_a_learned_bias_gets_the_same_kernel_where_no_gradient_is_wanted():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 4, 4, 6, 8)
    for bias in (torch.randn(6, 6) * 9, torch.randn(4, 1, 1, 6).expand(4, 1, 6, 6)):
        bias.requires_grad_()
        with torch.no_grad():
            want, got = (f(q, k, v, bias) for f in (scaled_dot_product_attention, safe_scaled_dot_product_attention))
        assert torch.equal(got, want)
        assert not got.requires_grad


@EXACT
def test_dropout_draws_the_same_numbers():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 6, 4) for _ in range(3))
    results = []
    for attention in (scaled_dot_product_attention, safe_scaled_dot_product_attention):
        torch.manual_seed(1)
        results.append(attention(q, k, v, left_padded(), 0.5))
    assert torch.equal(*results)


def test_non_finite_values_do_not_reach_dead_rows():
    q, k, v = (torch.randn(1, 1, 3, 4) for _ in range(3))
    v[..., 0, :] = float("nan")
    mask = torch.tensor([[False, False, False], [True, True, True], [False, True, True]])
    got = safe_scaled_dot_product_attention(q, k, v, mask)
    assert not got[..., 0, :].any()
    assert got[..., 1, :].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_zeroed_rows_are_plain_zeros_whatever_was_in_them(dtype):
    rows = torch.tensor([[float("nan"), 1.0], [float("inf"), -1.0], [-2.0, -0.0], [3.0, 4.0]], dtype=dtype)
    dead = torch.tensor([[True], [True], [True], [False]])
    output = zero_rows(rows.clone(), dead)
    assert torch.equal(output[:3], torch.zeros(3, 2, dtype=dtype))
    assert not torch.signbit(output[:3]).any()
    assert torch.equal(output[3], rows[3])
    graded = zero_rows(rows.clone().requires_grad_(), dead)
    graded.sum().backward()
    assert torch.equal(graded.detach(), output)


def test_zeroing_broadcasts_over_heads_and_keeps_the_layout():
    output = torch.randn(2, 5, 3, 4).transpose(1, 2)
    dead = torch.rand(2, 1, 5, 1) < 0.5
    want = output.masked_fill(dead, 0.0)
    stride = output.stride()
    assert torch.equal(zero_rows(output, dead), want)
    assert output.stride() == stride


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
@pytest.mark.parametrize("shape", [(2, 1, 5, 1), (1, 1, 5, 1), (2, 3, 5, 1), (5, 1), (1, 3, 1, 1)])
def test_zeroing_finds_the_rows_in_every_memory_layout(order, shape):
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn([(2, 3, 5, 4)[dim] for dim in order], generator=generator)
    output = memory.permute([order.index(dim) for dim in range(4)])
    dead = torch.rand(shape, generator=generator) < 0.5
    for part in (output, output[..., ::2], output[..., :0]):
        assert torch.equal(zero_rows(part, dead), part.masked_fill(dead, 0.0))
    want = output.masked_fill(dead, 0.0)
    assert torch.equal(zero_rows(output, dead, fresh=True), want)


def test_where_the_cpu_knows_fully_masked_rows_the_mask_stays_as_it_is_and_what_is_in_them_is_zeroed():
    torch.manual_seed(0)
    q, v = torch.randn(2, 2, 6, 4), torch.randn(2, 2, 6, 4)
    v[0, :, 0] = float("nan")
    mask = left_padded()
    with torch.no_grad():
        assert open_dead_rows(mask, by_torch=True)[0] is mask
        assert not safe_scaled_dot_product_attention(q, q, v, mask)[0, :, :3].any()
        for opened in (open_dead_rows(mask)[0], _opened_under_a_mode(mask)):
            assert opened.any(-1).all()
    assert open_dead_rows(mask, by_torch=True)[0].any(-1).all()  # gradients may be asked for


def test_an_opened_bias_that_learns_says_so_to_torch_without_gradients_too():
    bias = torch.where(left_padded(), 0.0, NEVER).requires_grad_()
    with torch.no_grad():
        opened, _ = open_dead_rows(bias)
    assert opened.requires_grad
    assert (opened > NEVER).any(-1).all()


def _opened_under_a_mode(mask):
    with mpsdiag.emulate_mps("2.8"):
        return open_dead_rows(mask, by_torch=True)[0]


def test_a_traced_graph_holds_for_other_masks_too():
    torch.manual_seed(0)
    q, v = torch.randn(2, 2, 6, 4), torch.randn(2, 2, 6, 4).masked_fill(left_padded()[:, :, -1:].mT, float("nan"))
    masks = [torch.ones(2, 1, 6, 6, dtype=torch.bool), left_padded(), left_padded(pads=(0, 6))]
    for first in masks:
        graph = make_fx(lambda mask: safe_scaled_dot_product_attention(q, q, v, mask))(first)
        for mask in masks:
            torch.testing.assert_close(graph(mask), safe_scaled_dot_product_attention(q, q, v, mask), equal_nan=True)


def test_integer_masks_are_left_to_torch():
    q = torch.randn(1, 1, 3, 4)
    with pytest.raises(RuntimeError, match=r"(?i)mask"):
        safe_scaled_dot_product_attention(q, q, q, torch.ones(3, 3, dtype=torch.long))


def test_nothing_depends_on_the_data():
    """Fake tensors have no data: reading any, or branching on it, raises."""
    with FakeTensorMode(), torch.no_grad():
        q = torch.empty(2, 2, 6, 4)
        mask = torch.empty(2, 1, 6, 6, dtype=torch.bool)
        assert safe_scaled_dot_product_attention(q, q, q, mask).shape == q.shape
        assert safe_scaled_dot_product_attention(q, q, q, mask.float()).shape == q.shape


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("mask", [left_padded(), torch.where(left_padded(), 0.0, NEVER), None])
def test_compiles_in_one_graph(grad, mask):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 6, 4, requires_grad=grad) for _ in range(3))
    compiled = torch.compile(safe_scaled_dot_product_attention, backend="eager", fullgraph=True)
    want = safe_scaled_dot_product_attention(q, k, v, mask)
    assert torch.equal(compiled(q, k, v, mask), want)
    torch.compiler.reset()


def test_works_under_function_transforms_and_leaves_nothing_behind():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 6, 4) for _ in range(3))
    mask = left_padded()

    def loss(query):
        return safe_scaled_dot_product_attention(query, k, v, mask).square().sum()

    transformed = torch.func.grad(loss)(q)
    plain = q.clone().requires_grad_()
    loss(plain).backward()
    torch.testing.assert_close(transformed, plain.grad)


@EXACT
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_mode_derivatives_of_fully_masked_rows_are_zero():
    torch.manual_seed(0)
    q, k, v, tangent = (torch.randn(2, 2, 6, 4) for _ in range(4))
    found = []
    for attention in (scaled_dot_product_attention, safe_scaled_dot_product_attention):
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            duals = [forward_ad.make_dual(x, tangent) for x in (q, k, v)]
            found.append(forward_ad.unpack_dual(attention(*duals, left_padded())))
    assert torch.equal(found[0].tangent, found[1].tangent)
    assert torch.equal(found[0].primal, found[1].primal)
    assert not found[1].tangent[0, :, :3].any()


@EXACT
def test_a_learned_bias_is_used_for_a_second_backward():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 6, 4) for _ in range(3))
    bias = torch.where(left_padded(), torch.randn(2, 1, 6, 6), NEVER).requires_grad_()
    for _ in range(2):  # each forward has a graph of its own, which its backward frees
        safe_scaled_dot_product_attention(q, k, v, bias).sum().backward()
    assert bias.grad.isfinite().all()


def test_a_mask_of_inference_mode_may_be_used_in_training():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 6, 4) for _ in range(3))
    with torch.inference_mode():
        safe_scaled_dot_product_attention(q, k, v, mask := left_padded())
    q.requires_grad_()
    safe_scaled_dot_product_attention(q, k, v, mask).sum().backward()
    assert q.grad.isfinite().all()


def test_neither_mask_nor_output_of_others_is_written():
    torch.manual_seed(0)
    q = torch.randn(2, 2, 6, 4)
    for mask in (left_padded(), torch.where(left_padded(), 0.0, NEVER)):
        before, version = mask.clone(), mask._version
        safe_scaled_dot_product_attention(q, q, q, mask)
        assert torch.equal(mask, before)
        assert (mask._version, mask.__dict__) == (version, {})
    theirs = torch.randn(2, 2, 6, 4)
    before = theirs.clone()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("torch.nn.functional.scaled_dot_product_attention", lambda *_, **__: theirs)
        assert not safe_scaled_dot_product_attention(q, q, q, left_padded())[0, :, :3].any()
    assert torch.equal(theirs, before)
    output, dead = torch.randn(2, 2, 6, 4), torch.ones(6, 1, dtype=torch.bool)
    before = output.clone()
    assert not zero_rows(output, dead).any()
    assert torch.equal(output, before)


@pytest.mark.parametrize("additive", [False, True])
def test_an_expanded_mask_stays_expanded(additive):
    keys = torch.tensor([[True, False, True], [False, False, False]])[:, None, None]
    mask = (torch.where(keys, 0.0, NEVER) if additive else keys).expand(2, 8, 5, 3)
    opened, dead = open_dead_rows(mask)
    assert (opened.shape, opened.stride()) == (mask.shape, mask.stride())
    assert dead.flatten().tolist() == [False, True]
    whole, rows = open_dead_rows(mask.contiguous())
    assert torch.equal(opened, whole)
    assert torch.equal(dead.expand(2, 8, 5, 1), rows)


def test_a_transposed_mask_after_the_mask_itself():
    torch.manual_seed(0)
    q = torch.randn(1, 1, 6, 4)
    mask = torch.rand(6, 6) < 0.3
    for view in (mask, mask.mT, mask[::2].repeat(2, 1), mask.flip(0)):
        want = reference_attention(q, q, q, view)
        torch.testing.assert_close(safe_scaled_dot_product_attention(q, q, q, view).double(), want)
