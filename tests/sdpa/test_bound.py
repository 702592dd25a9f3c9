import math

import pytest
import torch

from mpsdiag.sdpa.float64 import allowed_error, largest_error, storage_error

RIGHT = torch.tensor([[1.0, -3.0]], dtype=torch.float64)


def test_the_bound_is_twice_the_largest_error():
    assert allowed_error(RIGHT, torch.float16, [1e-2, 2e-2]) == 4e-2


@pytest.mark.parametrize("errors", [[], [0.0]])
def test_where_eager_is_right_by_luck_the_bound_is_what_storing_costs(errors):
    assert storage_error(RIGHT, torch.float16) == 3.0 * 2**-11
    assert allowed_error(RIGHT, torch.float16, errors) == 3.0 * 2**-10


def test_the_floor_lets_every_rounded_value_pass_and_nothing_much_further():
    exact = torch.rand(4096, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        floor = allowed_error(exact, dtype, [])
        assert largest_error(exact.to(dtype), exact) <= floor
        assert largest_error(exact + 2 * floor, exact) > floor


def test_an_infinity_in_the_reference_has_no_part_in_the_floor():
    assert storage_error(torch.tensor([2.0, math.inf]).double(), torch.float16) == 2.0 * 2**-11


@pytest.mark.parametrize(("value", "error"), [(math.nan, math.nan), (math.inf, math.inf), (1.5, 0.5)])
def test_what_an_error_is(value, error):
    assert largest_error(torch.tensor([[value, -3.0]]), RIGHT) == pytest.approx(error, nan_ok=True)


def test_rows_left_out_do_not_count_even_if_they_are_nan():
    reference = torch.zeros(2, 3, dtype=torch.float64)
    output = reference.clone()
    output[1] = math.nan
    assert largest_error(output, reference, torch.tensor([True, False])) == 0.0
    assert math.isnan(largest_error(output, reference))


def test_nothing_is_no_error():
    assert largest_error(torch.zeros(0, 3), torch.zeros(0, 3)) == 0.0
