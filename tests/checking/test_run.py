"""`mpsdiag.check` from Python: natural values are taken, others refused in a sentence."""

from pathlib import Path

import pytest
import torch

from mpsdiag import check
from mpsdiag.errors import BadInput


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"model": None}, "model is None; give a text"),
        ({"dataset": 3}, "dataset is 3; give a text"),
        ({"device": None}, "device is None; give a text"),
        ({"dtype": None}, "dtype is None; give a text"),
        ({"dtype": torch.int8}, "Unknown dtype 'int8'"),
        ({"seed": -1}, "seed is -1; give a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"probes": [1]}, "probes is 1; give a text"),
        ({"probes": "SDPA1"}, "Unknown probe 'SDPA1'. Did you mean"),
        ({"emulate": 2.8}, "put it in quotes"),
    ],
)
def test_what_cannot_be_used_is_refused(arguments, sentence):
    with pytest.raises(BadInput) as refusal:
        check(**{"device": "cpu", "level": 1, **arguments})
    assert sentence in str(refusal.value)


def test_what_is_natural_is_taken():
    found = check("cpu", probes="sdpa001", dtype=torch.float16, model=Path("tiny-gpt2"))
    assert [probe.id for probe in found.probes] == ["SDPA001"]
