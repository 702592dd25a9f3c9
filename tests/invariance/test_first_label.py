"""Labels predicted at padding: which they are, what they do to a loss, and the collator that leaves them out."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import DataCollatorForSeq2Seq

from mpsdiag.inputs.builtin import byte_tokenizer
from mpsdiag.inputs.models import build_model
from mpsdiag.invariance.first_label import first_label, predicted_at_padding, without_first_label


@pytest.fixture(scope="module")
def model():
    return build_model("tiny-llama")


def labelled(batch):
    hidden = batch["attention_mask"] == 0
    return {**batch, "labels": batch["input_ids"].masked_fill(hidden, -100)}


def measured(model, *batches):
    return first_label(model, batches, (model(**batch).logits for batch in batches))


def test_it_is_the_first_real_label_of_a_left_padded_sequence():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]])
    labels = torch.full((4, 4), 7).masked_fill(mask == 0, -100)
    labels[3, 1] = -100  # the label does not count
    assert predicted_at_padding(labels, mask).nonzero().tolist() == [[0, 2], [3, 3]]


def test_the_three_losses_are_those_of_float64_by_hand(model, batch_of):
    batch = labelled(batch_of(4, 9, 12))
    found = measured(model, batch)
    wide = build_model("tiny-llama").double()
    with torch.no_grad():
        losses, sequences = [], []
        logits = wide(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        for row, length in enumerate((4, 9, 12)):
            real = batch["input_ids"][row, 12 - length :]
            if length < 12:  # read from the last pad
                losses.append(F.cross_entropy(logits[row, 11 - length][None], real[:1]))
            alone = wide(real[None]).logits[0, :-1]
            sequences += list(F.cross_entropy(alone, real[1:], reduction="none"))
    rest = float(torch.stack(sequences).mean())
    every = float(torch.stack([*losses, *sequences]).mean())
    assert found.eval_loss == pytest.approx(every, abs=1e-5)
    assert found.eval_loss_without == pytest.approx(rest, abs=1e-5)
    assert found.eval_loss_alone == pytest.approx(rest, abs=1e-5)
    assert abs(every - rest) > 1e-3
    assert f"{every - rest:+.3g}" in found.sentence


def test_without_padding_on_the_left_there_is_nothing_to_say(model, batch_of):
    assert measured(model, labelled(batch_of(4, 9, side="right"))) is None
    assert measured(model, labelled(batch_of(9, 9))) is None


def test_losses_that_are_not_finite_are_not_called_moved(model, batch_of):
    batch = labelled(batch_of(4, 9))
    found = first_label(model, [batch], [torch.full((2, 9, 259), math.nan)])
    assert found.sentence.startswith("over all labels the mean loss is nan, and ")
    assert math.isfinite(found.eval_loss_alone)


def test_the_collator_leaves_them_out(model):
    rows = [{"input_ids": list(range(5, 5 + length))} for length in (3, 8)]
    rows = [{**row, "labels": row["input_ids"], "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    stock = DataCollatorForSeq2Seq(byte_tokenizer(), label_pad_token_id=-100)
    before, after = stock(rows), without_first_label(stock)(rows)
    assert (before["labels"] != after["labels"]).nonzero().tolist() == [[0, 5]]
    assert measured(model, after) is None
    assert without_first_label(lambda: {"labels": 3})() == {"labels": 3}
