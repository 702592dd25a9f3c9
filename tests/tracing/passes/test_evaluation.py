"""Evaluations of several batches, and the loss that only looks finite; checkpoints and saved batches."""

import math

import pytest
import torch
from safetensors.torch import save_file

from mpsdiag import emulate_mps
from mpsdiag.errors import BadInput
from mpsdiag.tracing.cases.recorded_case import load_batch, save_batch
from mpsdiag.tracing.cases.traced_case import bad_since, find_checkpoints
from mpsdiag.tracing.passes.forward import trace_batches


@pytest.mark.needs(transformers="5.23")  # the first that filters
def test_a_loss_that_only_looks_finite(build, batch_of):
    model = build("tiny-gpt2")
    batches = [batch_of((0, 0)), batch_of((3, 0), seed=1), batch_of((0, 0, 0), seed=2)]
    with emulate_mps("2.8"):
        found = trace_batches(model, batches)
    assert found.bad == [1]
    assert math.isnan(found.eval_loss)
    assert found.origin.cause == "dead_rows"
    assert found.origin.evidence["batch"] == 1
    hidden = found.origin.also[0]
    assert (hidden.cause, hidden.phase) == ("hidden_by_filter", "evaluation")
    assert hidden.evidence["dropped_batches"] == [1]
    with torch.no_grad():
        losses = [float(model(**batches[i]).loss) for i in (0, 2)]
    assert found.stock_eval_loss == pytest.approx((2 * losses[0] + 3 * losses[1]) / 5, rel=1e-6)


def test_no_filter_is_blamed_when_every_batch_is_bad(build, batch_of):
    with emulate_mps("2.8"):
        found = trace_batches(build("tiny-llama"), [batch_of(), batch_of(seed=1)])
    assert (found.bad, found.origin.also) == ([0, 1], [])
    assert math.isnan(found.stock_eval_loss)


@pytest.mark.needs(transformers="5.23")
def test_batches_that_are_bad_for_different_reasons(build, batch_of):
    unlabelled = batch_of((0, 0), seed=1)
    unlabelled["labels"].fill_(-100)
    with emulate_mps("2.8"):
        found = trace_batches(build("tiny-llama"), [batch_of((0, 0)), unlabelled, batch_of((2, 0))])
    assert [found.origin.cause, *(o.cause for o in found.origin.also)] == ["no_labels", "dead_rows", "hidden_by_filter"]
    assert [found.origin.evidence["batch"], found.origin.also[0].evidence["batch"]] == [1, 2]


def test_clean_batches_give_the_plain_mean(build, batch_of):
    model, batches = build("tiny-llama"), [batch_of((1, 0)), batch_of((0, 0), seed=1)]
    found = trace_batches(model, batches)
    assert (found.origin, found.bad) == (None, [])
    assert found.eval_loss == found.stock_eval_loss == pytest.approx(sum(found.losses) / 2)


def test_a_forward_that_raises_gives_no_mean_and_hides_nothing(build, batch_of):
    """One batch is longer than the model: no Trainer comes to a loss, so none is filtered."""
    found = trace_batches(build("tiny-gpt2"), [batch_of((0, 0)), batch_of((0, 0), length=65, seed=1)])
    assert (found.bad, found.origin.cause, found.origin.also) == ([1], "bad_inputs", [])
    assert (found.eval_loss, found.stock_eval_loss) == (None, None)
    assert math.isfinite(found.losses[0])
    assert math.isnan(found.losses[1])


def test_a_batch_survives_its_file(batch_of, tmp_path):
    batch = batch_of()
    save_batch(tmp_path / "b.safetensors", batch)
    again = load_batch(tmp_path / "b.safetensors")
    assert all(torch.equal(batch[name], again[name]) for name in batch)


@pytest.mark.parametrize("cut", [0, 4, 20, 200, -1])
def test_a_file_cut_short_is_refused(batch_of, tmp_path, cut):
    path = tmp_path / "b.safetensors"
    save_batch(path, batch_of())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BadInput, match="cut short"):
        load_batch(path)


@pytest.mark.parametrize("name", ["batch.pt", "batch.safetensors"])
def test_a_pickle_is_refused_with_the_reason_whatever_it_is_called(tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("it was run",))

    torch.save({"input_ids": Bomb()}, tmp_path / name)
    with pytest.raises(BadInput, match="loading it can run any code"):
        load_batch(tmp_path / name)
    import pickle

    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BadInput, match="loading it can run any code"):
        load_batch(tmp_path / name)


def test_since_which_checkpoint(tmp_path):
    for step in (100, 200, 1000):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        weight = torch.ones(4)
        if step == 1000:
            weight[1] = float("nan")
        save_file({"a.weight": torch.ones(3), "b.weight": weight}, folder / "model.safetensors")
    found = find_checkpoints([tmp_path / "run"])
    assert [folder.name for folder in found] == ["checkpoint-100", "checkpoint-200", "checkpoint-1000"]
    assert bad_since(found, ["b.weight"]) == {
        "bad_since": "checkpoint-1000",
        "last_finite": "checkpoint-200",
        "tensor": "b.weight",
        "checkpoints": 3,
    }
    assert bad_since(found, ["a.weight"])["bad_since"] is None
    assert bad_since(found, [])["tensor"] == "b.weight"


def test_checkpoints_that_are_pickles_or_missing_are_refused(tmp_path):
    with pytest.raises(BadInput, match="no folder"):
        find_checkpoints([tmp_path / "nowhere"])
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(BadInput, match="pickles, which are refused"):
        find_checkpoints([tmp_path])
