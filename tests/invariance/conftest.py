import importlib
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def alarms():
    """The script that draws models at random."""
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module("invariance_alarms")
    sys.path.remove(folder)


@pytest.fixture(scope="session")
def batch_of():
    """Make a batch of random tokens of these lengths, padded to the longest or further."""

    def make(*lengths, side="left", length=None, vocabulary=250, seed=0):
        generator = torch.Generator().manual_seed(seed)
        longest = length or max(lengths)
        ids = torch.zeros(len(lengths), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, count in enumerate(lengths):
            place = slice(longest - count, None) if side == "left" else slice(count)
            ids[row, place] = torch.randint(3, vocabulary, (count,), generator=generator)
            mask[row, place] = 1
        return {"input_ids": ids, "attention_mask": mask}

    return make
