"""The sentence about weights that a checkpoint lacks."""

import pytest
from torch import nn

from mpsdiag.inputs.models import keep_missing, missing_note


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["lm_head.weight"], "lacks weights of lm_head (1 tensor)"),
        (["h.0.attn.q", "h.0.mlp.up", "h.1.mlp.up"], "lacks weights of h.0, h.1 (3 tensors)"),
        ([f"h.{i}.a" for i in range(7)], "h.3, h.4 and 2 more (7 tensors)"),
        (["scale"], "lacks weights of scale (1 tensor)"),
    ],
)
def test_layers_are_named_once(names, said):
    model = nn.Linear(1, 1)
    keep_missing(model, names)
    assert said in missing_note(model)


def test_nothing_missing_is_nothing_said():
    model = nn.Linear(1, 1)
    assert missing_note(model) is None
    keep_missing(model, [])
    assert missing_note(model) is None
