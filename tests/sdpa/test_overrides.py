"""Arguments with a `__torch_function__` of their own answer as without the fix, whatever mode is in place."""

import contextlib
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import mpsdiag
from mpsdiag.sdpa.safe import safe_scaled_dot_product_attention

STOCK = F.scaled_dot_product_attention
MODES = ["sdpa", "safe_sdpa", "unmask_sdpa", "min_mask_sdpa", "eager"]


@pytest.fixture(params=[*MODES, "safe"])
def attend(request):
    """Attention through the public name with a mode installed, or the safe function called by name."""
    if request.param == "safe":
        yield safe_scaled_dot_product_attention
    else:
        with mpsdiag.install(request.param):
            yield F.scaled_dot_product_attention


def bias(kind, rows, keys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch announces NaN for more queries than keys
        return kind(rows, keys)


@pytest.mark.parametrize("emulated", [False, True])
@pytest.mark.parametrize("kind", [causal_lower_right, causal_upper_left])
@pytest.mark.parametrize(("rows", "keys"), [(4, 6), (6, 6)])
def test_torchs_causal_biases(attend, kind, rows, keys, emulated):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 2, rows, 8, generator=generator)
    k, v = torch.randn(2, 1, 2, keys, 8, generator=generator)
    want = STOCK(
        q, k, v, torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows if kind is causal_lower_right else 0)
    )
    with mpsdiag.emulate_mps("2.8") if emulated else contextlib.nullcontext():
        for call in ({"attn_mask": bias(kind, rows, keys)},):
            got = attend(q, k, v, **call)
    assert type(got) is torch.Tensor
    torch.testing.assert_close(got, want)


def test_a_causal_bias_with_fully_masked_rows(attend):
    q, k, v = (torch.randn(1, 2, n, 8, generator=torch.Generator().manual_seed(n)) for n in (6, 4, 4))
    want = STOCK(q, k, v, torch.ones(6, 4, dtype=torch.bool).tril(-2))
    got = attend(q, k, v, bias(causal_lower_right, 6, 4))
    torch.testing.assert_close(got[:, :, 2:], want[:, :, 2:])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors(attend):
    rows = [torch.randn(n, 2, 8, generator=torch.Generator().manual_seed(n)) for n in (3, 5)]
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged).transpose(1, 2)
    got = attend(nested, nested, nested)
    assert torch.equal(got.transpose(1, 2).values(), STOCK(nested, nested, nested).transpose(1, 2).values())


class Quiet(torch.Tensor):
    """A subclass without opinions."""


@pytest.mark.parametrize("place", range(4))
def test_a_subclass_without_opinions_keeps_its_type(attend, place):
    q, k, v = torch.randn(3, 1, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    arguments = [q, k, v, torch.ones(4, 4, dtype=torch.bool).tril(-1)]
    plain = attend(*arguments)
    arguments[place] = arguments[place].as_subclass(Quiet)
    got = attend(*arguments)
    assert type(got) is type(STOCK(*arguments)) is Quiet
    assert torch.equal(got.as_subclass(torch.Tensor), plain)


class Foreign:
    """No tensor, and no dtype; knows one name of the function."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return (types, args, kwargs) if func is cls.known() else NotImplemented


class ByTorchsFunction(Foreign):
    known = staticmethod(lambda: STOCK)


class ByPublicName(Foreign):
    known = staticmethod(lambda: F.scaled_dot_product_attention)


class Refuses(Foreign):
    known = staticmethod(lambda: None)


@pytest.mark.parametrize("kind", [ByTorchsFunction, ByPublicName])
def test_objects_that_are_no_tensors_are_asked_with_the_arguments_as_they_came(attend, kind):
    thing = kind()
    types, args, kwargs = attend(thing, thing, value=thing, attn_mask=None)
    assert types == (kind,)
    if attend is not safe_scaled_dot_product_attention:
        assert (args, kwargs) == ((thing, thing), {"value": thing, "attn_mask": None})
    assert attend(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), thing)[0] == (kind,)


def test_what_all_refuse_is_refused_by_torch_in_its_own_words(attend):
    thing = Refuses()
    with pytest.raises(TypeError) as stock:
        STOCK(thing, thing, thing)
    with pytest.raises(TypeError) as ours:
        attend(thing, thing, thing)
    assert str(ours.value).split("<")[0] == str(stock.value).split("<")[0]


def test_a_parameter_as_mask_is_a_plain_tensor(attend):
    q = torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    learned = torch.nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))
    got = attend(q, q, q, learned)
    assert type(got) is torch.Tensor
    got.sum().backward()
    assert learned.grad is not None


@pytest.mark.needs(torch="2.9")  # the compiler of 2.7 does not follow torch.overrides
@pytest.mark.parametrize("mode", ["sdpa", "safe_sdpa", "eager"])
def test_a_causal_bias_in_compiled_code(mode):
    q, k = (torch.randn(1, 2, n, 8, generator=torch.Generator().manual_seed(n)) for n in (4, 6))
    mask = causal_lower_right(4, 6)

    def attend(q, k):
        return F.scaled_dot_product_attention(q, k, k, mask)

    torch._dynamo.reset()
    want = attend(q, k)
    with mpsdiag.install(mode):
        torch.testing.assert_close(torch.compile(attend, backend="eager", fullgraph=True)(q, k), want)
