"""Watching does not change what runs: torch's fused transformer layers, nested tensors, compiled layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpsdiag import emulate_mps, trace


class Encoder(nn.Module):
    def __init__(self, *, norm_first=True, layers=2):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=not norm_first)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask, labels=None):
        hidden = self.encoder(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)
        logits = self.head(hidden)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


def batch(last=0):
    mask = torch.ones(3, 5, dtype=torch.long)
    mask[1, 3:], mask[2, last:] = 0, 0
    return {"input_ids": torch.arange(15).reshape(3, 5), "attention_mask": mask}


@pytest.mark.filterwarnings("ignore:.*nested tensors")
@pytest.mark.parametrize("last", [0, 2])
@pytest.mark.parametrize("norm_first", [True, False])
def test_the_trace_agrees_with_the_plain_evaluation(norm_first, last):
    model = Encoder(norm_first=norm_first).eval()
    with torch.no_grad():
        plain = bool(model(**batch(last))["logits"].isfinite().all())
    origin = trace(model, batch(last))
    assert (origin is None) == plain
    assert "forward" not in vars(model.encoder.layers[0])
    if origin is not None:
        assert (origin.cause, origin.layer) == ("bad_mask", 0)
        assert origin.operation in ("TransformerEncoderLayer", "TransformerEncoder")
        assert "padding only" in origin.summary


def test_training_takes_the_slow_path_and_is_clean():
    model, given = Encoder(), batch()
    labels = given["input_ids"] % 3
    labels[2] = -100
    assert trace(model, {**given, "labels": labels}, train=True) is None


@pytest.mark.filterwarnings("ignore:.*nested tensors")
@pytest.mark.parametrize("norm_first", [True, False])
def test_what_is_wrong_inside_is_named_in_detail(norm_first):
    model = Encoder(norm_first=norm_first).eval()
    with torch.no_grad():
        model.encoder.layers[1].linear2.weight[0, 0] = float("nan")
    origin = trace(model, batch(4))
    assert (origin.cause, origin.layer, origin.module) == ("bad_weights", 1, "encoder.layers.1.linear2")


def test_emulated_mps_has_no_fused_path():
    model = Encoder().eval()
    with emulate_mps("2.8"):
        origin = trace(model, batch())
        assert trace(model, batch(2)) is None
    assert (origin.cause, origin.operation) == ("bad_mask", "scaled_dot_product_attention")


def compile_one(model):
    model.model.layers[2] = torch.compile(model.model.layers[2], backend="eager")


def compile_all(model):
    for index in range(len(model.model.layers)):
        model.model.layers[index] = torch.compile(model.model.layers[index], backend="eager")


def compile_in_place(model):
    for layer in model.model.layers:
        layer.compile(backend="eager")


def compile_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")


@pytest.mark.parametrize("way", [compile_one, compile_all, compile_in_place, compile_forward])
@pytest.mark.parametrize("broken", [False, True])
def test_compiled_layers(build, batch_of, plants, way, broken):
    torch._dynamo.reset()
    model = build("tiny-llama")
    module, operation = plants.bad_weight(model, 2) if broken else ("", "")
    way(model)
    origin = trace(model, batch_of())
    if broken:
        assert (origin.cause, origin.layer, origin.module, origin.operation) == ("bad_weights", 2, module, operation)
    else:
        assert origin is None


def test_a_nan_that_only_the_compiled_model_gives_is_a_finding(build, batch_of):
    def broken(graph, _inputs):
        def run(*args):
            return [t * float("nan") if t.is_floating_point() else t for t in graph(*args)]

        return run

    torch._dynamo.reset()
    model = build("tiny-gpt2")
    model.lm_head = torch.compile(model.lm_head, backend=broken)
    origin = trace(model, batch_of())
    assert (origin.cause, origin.operation) == ("unknown", "forward")
    assert "compiled or fused kernel" in origin.summary
