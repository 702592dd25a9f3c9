"""The shared steps of G4 to G7 on their own."""

import math

import pytest
import torch

from mpsdiag.emulation.generations.online_softmax import grouped_scores, in_steps, weighted_sum

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("weights", "values", "read", "wanted"),
    [
        ([0.5, 0.5], [1.0, 3.0], None, 2.0),
        ([1.0, 0.0], [1.0, NAN], None, NAN),
        ([1.0, 0.0], [1.0, NAN], [True, False], 1.0),
        ([1.0, 0.0], [1.0, INF], None, NAN),
        ([1.0, 0.0], [1.0, -INF], [True, False], 1.0),
        ([0.5, 0.5], [1.0, INF], None, INF),
        ([0.5, 0.5], [-INF, 2.0], None, -INF),
        ([0.5, 0.5], [-INF, INF], None, NAN),
        ([NAN, 0.5], [1.0, 2.0], None, NAN),
        ([NAN, 0.5], [1.0, INF], None, NAN),
        ([NAN, 0.5], [INF, 1.0], None, NAN),
        ([0.0, 0.0], [1.0, 2.0], [False, False], 0.0),
    ],
)
def test_weighted_sum_follows_ieee_for_what_is_read(weights, values, read, wanted):
    read = None if read is None else torch.tensor([read])
    got = weighted_sum(torch.tensor([weights]), torch.tensor([values]).T, read).item()
    assert got == wanted or (math.isnan(got) and math.isnan(wanted))


def test_a_key_belongs_to_its_index_modulo_the_stride():
    stepped = in_steps(torch.arange(10.0), 4, fill=-1.0)
    assert stepped.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]]


def test_query_head_h_reads_kv_head_h_over_the_ratio():
    query = torch.ones(1, 6, 1, 1)
    key = torch.tensor([10.0, 20.0]).view(1, 2, 1, 1)
    assert grouped_scores(query, key).flatten().tolist() == [10, 10, 10, 20, 20, 20]
