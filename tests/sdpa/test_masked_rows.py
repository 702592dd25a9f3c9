import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsdiag.errors import BadInput
from mpsdiag.sdpa.watch import count_pairs, dead_rows, masked_pairs

NEVER = float("-inf")


def rows_of(mask):
    """The same question asked of Python lists, number by number."""
    flat = mask.reshape(-1, mask.shape[-1]).tolist()
    hidden = [all(x is False or x == NEVER for x in row) for row in flat]
    return torch.tensor(hidden, dtype=torch.bool).reshape(mask.shape[:-1])


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    seed=st.integers(0, 2**31),
    kind=st.sampled_from([torch.bool, torch.float32, torch.float16, torch.bfloat16]),
)
def test_every_rank_and_kind(shape, seed, kind):
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(shape, generator=generator) < 0.4
    mask = keep if kind == torch.bool else torch.where(keep, 0.0, NEVER).to(kind)
    assert torch.equal(dead_rows(mask), rows_of(mask))


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 13),
    offset=st.integers(0, 5),
    density=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 99),
)
def test_every_width_and_place_of_a_bool_mask_in_its_storage(width, offset, density, seed):
    flat = torch.rand(5 * 16, generator=torch.Generator().manual_seed(seed)) < density
    contiguous = flat[offset : offset + 5 * width].view(5, width)
    strided = flat.view(5, 16)[:, offset : offset + width]
    for mask in (contiguous, strided, strided.T, contiguous.flip(-1), contiguous[None].expand(3, 5, width)):
        assert torch.equal(dead_rows(mask), rows_of(mask))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_large_finite_values_are_not_dead(dtype):
    mask = torch.full((2, 3), torch.finfo(dtype).min, dtype=dtype)
    mask[1] = NEVER
    assert dead_rows(mask).tolist() == [False, True]


def test_a_row_with_nan_is_alive():
    assert dead_rows(torch.tensor([[NEVER, float("nan")], [NEVER, NEVER]])).tolist() == [False, True]


def test_broadcast_masks_keep_their_shape():
    assert dead_rows(torch.zeros(2, 1, 1, 5, dtype=torch.bool)).shape == (2, 1, 1)
    expanded = torch.zeros(1, 1, 1, 5, dtype=torch.bool).expand(2, 3, 4, 5)
    assert dead_rows(expanded).all()


def test_integer_masks_are_refused_with_advice():
    with pytest.raises(BadInput, match=r"mask\.bool\(\)"):
        dead_rows(torch.ones(2, 2, dtype=torch.long))


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 9)),
    kept=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    rank=st.integers(2, 4),
    floating=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_pairs_are_those_of_the_mask_as_attention_broadcasts_it(sizes, kept, rank, floating, seed):
    sequences, heads, queries, keys = sizes
    shape = [size if whole else 1 for size, whole in zip(sizes[:3], kept, strict=True)] + [keys]
    keep = torch.rand(shape[4 - rank :], generator=torch.Generator().manual_seed(seed)) < 0.3
    mask = torch.where(keep, 0.0, NEVER) if floating else keep
    full = rows_of(mask.broadcast_to(sequences, heads, queries, keys)).tolist()
    expected = [[any(full[s][h][q] for h in range(heads)) for q in range(queries)] for s in range(sequences)]
    output = torch.Size((sequences, heads, queries, 8))
    assert masked_pairs(mask, output).tolist() == expected
    assert count_pairs(mask, output) == sum(map(sum, expected))


def test_pairs_without_heads_and_masks_that_are_not_read():
    mask = torch.tensor([[[True, False], [False, False]], [[False, False], [True, True]]])
    assert masked_pairs(mask, torch.Size((2, 2, 8))).tolist() == [[False, True], [True, False]]
    assert count_pairs(mask.to("meta"), torch.Size((2, 2, 8))) is None
