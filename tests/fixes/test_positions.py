"""The fix `positions` gives a padded GPT-2 what each sequence has alone, and touches nothing else."""

import contextlib
import subprocess
import sys

import pytest
import torch

from mpsdiag import apply, install, watch
from mpsdiag.errors import BadInput
from mpsdiag.fixes.positions import position_ids, with_position_ids
from mpsdiag.inputs.models import build_model


@pytest.fixture(scope="module")
def model():
    return build_model("tiny-gpt2")


@pytest.fixture(scope="module")
def batch():
    ids = torch.randint(3, 250, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


def off(model, batch):
    """How far the padded sequence is from itself alone."""
    with torch.no_grad():
        alone = model(batch["input_ids"][:1, 3:]).logits[0]
        return float((model(**batch).logits[0, 3:] - alone).abs().max())


def test_positions_are_counted_over_real_tokens():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    assert position_ids(mask, 5).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]
    assert position_ids(mask, 2).tolist() == [[1, 2], [3, 3]]


@pytest.mark.parametrize("put", [lambda model: apply(model, "positions"), lambda _: install("positions")])
def test_it_restores_what_the_sequence_has_alone_and_is_removed(model, batch, put):
    before = off(model, batch)
    assert before > 0.05
    with put(model) as handle:
        assert handle.name == "positions"
        assert off(model, batch) < 1e-5
        given = torch.zeros_like(batch["input_ids"])
        assert torch.equal(model(**batch, position_ids=given).logits, model(**batch, position_ids=given).logits)
    assert off(model, batch) == before


def test_it_goes_together_with_an_attention_mode(model, batch):
    with install("safe_sdpa"), install("positions"):
        assert off(model, batch) < 1e-5


def test_position_ids_that_are_given_are_kept(model, batch):
    given = torch.arange(7).flip(0).expand(2, 7)
    stock = model(**batch, position_ids=given).logits
    with apply(model, "positions"):
        assert torch.equal(model(**batch, position_ids=given).logits, stock)
        assert torch.equal(model(batch["input_ids"]).logits, model(batch["input_ids"]).logits)


def test_a_model_that_takes_none_is_refused():
    with pytest.raises(BadInput, match="takes no position_ids"):
        apply(torch.nn.Linear(2, 2), "positions")


def test_the_collator_adds_them(batch):
    made = with_position_ids(lambda rows: dict(batch))([])
    assert made["position_ids"].tolist()[0] == [0, 0, 0, 0, 1, 2, 3]
    assert "position_ids" not in with_position_ids(lambda rows: {"input_ids": batch["input_ids"]})([])


def test_it_can_be_installed_before_transformers_is_imported():
    code = """
import sys, torch
from mpsdiag.fixes.process import install
install("positions")
assert "transformers.modeling_utils" not in sys.modules
from transformers import GPT2Config, GPT2LMHeadModel
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)).eval()
ids, mask = torch.tensor([[0, 0, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1, 1]])
print(float((model(ids, attention_mask=mask).logits[0, 2:] - model(ids[:, 2:]).logits[0]).abs().max()) < 1e-5)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_a_watcher_sees_the_model_where_positions_are_installed_and_after_that(model, batch):
    for context in (install("positions"), contextlib.nullcontext()):
        with context, watch() as seen, torch.no_grad():
            model(**batch)
        assert seen.report.watched.models == {type(model).__name__: 1}


def test_a_compiled_model_runs_where_positions_are_installed_and_after_that(model, batch):
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        with install("positions"):
            torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)
