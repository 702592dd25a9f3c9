"""Batches are taken apart into sequences and put together again."""

import pytest
import torch

from mpsdiag.invariance.arrangements import EXTRA, Arrangement, arrangements, examples_of, joined, scrambled

PICTURE = 99


@pytest.mark.parametrize(
    ("tokens", "entries", "shares"),
    [
        ((2, 0, 2), 2, (1, 0, 1)),  # one picture of two tokens in the first and in the last sequence
        ((4, 0, 2), 3, (2, 0, 1)),  # two pictures in the first
        ((2, 0, 1), 12, (8, 0, 4)),  # patches, four to a token
        ((2, 2, 2), 3, (1, 1, 1)),
        ((0, 0, 0), 3, (1, 1, 1)),  # no tokens stand for pictures: one entry a sequence
        ((2, 0, 1), 2, (0, 0, 0)),  # nobody knows whose they are
    ],
)
def test_pictures_go_with_the_sequences_whose_tokens_stand_for_them(tokens, entries, shares):
    ids = torch.arange(24).reshape(3, 8) % 7
    for row, count in enumerate(tokens):
        ids[row, :count] = PICTURE
    pictures = torch.arange(entries).float().reshape(-1, 1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures}
    found = examples_of(batch, picture=PICTURE)
    assert tuple(len(one.get("pixel_values", ())) for one in found) == shares
    if sum(shares):
        assert torch.equal(joined(found)["pixel_values"], pictures)
    assert "pixel_values" not in joined([found[1]]) or shares[1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_neighbour_is_longer_than_every_sequence(side):
    examples = [
        {"input_ids": torch.arange(length), "attention_mask": torch.ones(length, dtype=torch.long)}
        for length in (7, 3, 5)
    ]
    named = {one.name: one for one in arrangements(examples, pad_id=0, padding_side=side)}
    assert named["neighbour"].batch["attention_mask"].sum(1).tolist() == [3, 7 + EXTRA]
    assert named["neighbour"].rows == (1,)
    assert named["left"].batch["attention_mask"].sum(1).tolist() == [7, 3, 5]


def test_scrambled_pads_hold_no_picture():
    ids = torch.tensor([[0] * 200, [PICTURE] * 190 + [1, 2] * 5])
    batch = {"input_ids": ids, "attention_mask": torch.tensor([[0] * 198 + [1] * 2, [1] * 200])}
    ids[0, -2:] = 3
    found = scrambled(Arrangement("left", batch, (0, 1)), PICTURE).batch["input_ids"]
    assert torch.equal(found[1], ids[1])
    assert set(found[0].tolist()) <= {1, 2, 3}
    assert len(set(found[0, :198].tolist())) > 1
