"""A client that was written for the stock Trainer, run with MPSSafeTrainer in its place: the same numbers."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from mpsdiag.trainers.mps_safe import MPSSafeTrainer


def accuracy(prediction):
    guess, truth = prediction.predictions.argmax(-1)[:, :-1], prediction.label_ids[:, 1:]
    return {"accuracy": float((guess == truth)[truth != -100].mean())}


@pytest.fixture
def client(trainer_of, examples, tmp_path):
    """Train with accumulation and smoothing, evaluate, save, predict, resume; return every number there is."""

    def go(kind, **extra):
        folder = tmp_path / kind.__name__
        options = {
            "output_dir": str(folder),
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "label_smoothing_factor": 0.1,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "load_best_model_at_end": True,
            "eval_accumulation_steps": 1,
        }
        trainer = trainer_of(kind, options=options, compute_metrics=accuracy, **extra)
        trained = trainer.train()
        predicted = trainer.predict(examples)
        resumed = trainer_of(kind, options=options, compute_metrics=accuracy, **extra)
        resumed.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
        return {
            "training_loss": trained.training_loss,
            "history": trainer.state.log_history,
            "best": trainer.state.best_metric,
            "predictions": predicted.predictions,
            "prediction metrics": predicted.metrics,
            "resumed history": resumed.state.log_history,
            "checkpoint": load_file(folder / "checkpoint-4" / "model.safetensors"),
        }

    return go


def numbers(history):
    timing = ("runtime", "_per_second")
    return [{name: value for name, value in row.items() if not name.endswith((*timing, "_batches"))} for row in history]


@pytest.mark.needs(torch="2.6")  # Beside an older one transformers reads no optimizer.
def test_every_number_of_the_client_is_the_same(client):
    stock, ours = client(Trainer), client(MPSSafeTrainer, always=True, loss_chunk_bytes=20_000)
    for name in ("training_loss", "best"):
        assert ours[name] == stock[name]
    for name in ("history", "resumed history"):
        assert numbers(ours[name]) == numbers(stock[name])
    np.testing.assert_array_equal(ours["predictions"], stock["predictions"])
    assert numbers([ours["prediction metrics"]]) == numbers([stock["prediction metrics"]])
    assert ours["checkpoint"].keys() == stock["checkpoint"].keys()
    assert all(torch.equal(ours["checkpoint"][name], stock["checkpoint"][name]) for name in stock["checkpoint"])
    last = [row for row in ours["history"] if "eval_loss" in row][-1]
    assert last["eval_nonfinite_batches"] == 0
