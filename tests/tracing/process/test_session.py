"""The check of a script's own batches, in this process: what is affected, what resolves it."""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import mpsdiag
from mpsdiag.tracing.process.forwards import WatchedForward
from mpsdiag.tracing.process.session import check_forwards


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config).eval()


def batch(pad, side="left"):
    ids, mask = (torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(0)), torch.ones(2, 9).long())
    mask[1, slice(0, pad) if side == "left" else slice(9 - pad, 9)] = 0
    return {"input_ids": ids, "attention_mask": mask}


def looked_at(model, **arguments):
    return check_forwards([WatchedForward.of(model, (), arguments, 0)], evaluation=True)


def test_dead_rows_are_affected_and_resolved_by_the_fixes():
    with mpsdiag.emulate_mps("2.8"):
        found = looked_at(llama(), **batch(4))
    assert found.affected
    assert found.resolved_by == ["eager", "safe_sdpa"]
    assert found.exposure.rows == 4


def test_a_clean_batch_is_as_the_sequences_alone():
    found = looked_at(llama(), **batch(4, "right"))
    assert not found.affected
    assert found.invariance.verdict == "invariant"
    assert found.notes == []


def test_a_model_that_looks_at_padding_is_affected_and_no_fix_resolves_it():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(64, 8)

        def forward(self, input_ids, attention_mask):
            hidden = self.embed(input_ids)
            return hidden + hidden.mean(1, keepdim=True)

    found = looked_at(Mean().eval(), **batch(4))
    assert found.affected
    assert found.finite
    assert found.resolved_by == []


def test_what_cannot_be_looked_at_is_noted():
    found = looked_at(nn.Linear(2, 2), input=torch.ones(1, 2))
    assert found.invariance is None
    assert "invariance was not checked" in found.notes[0]
