"""Finite but wrong: the first layer that leaves float64, and the operation in it."""

import pytest
import torch
import transformers

from mpsdiag import emulate_mps, trace
from mpsdiag.emulation.mode import EmulatedMPS, active
from mpsdiag.emulation.selection import Emulation
from mpsdiag.inputs.models import build_model
from mpsdiag.tracing.passes import device_difference
from mpsdiag.tracing.passes.device_difference import PerOperation


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_causal_leak_of_half_precision(build, batch_of, plants, name, dtype, layer):
    """Up to the layer that is to be named, an explicit mask keeps the leak out."""
    model = build(name, dtype)
    for earlier in range(layer):
        plants.explicit_causal_mask(model, earlier, 4)
    with emulate_mps("2.11", macos=26):
        origin = trace(model, batch_of((0, 0), length=4))
    assert (origin.cause, origin.layer) == ("wrong_device", layer)
    assert origin.operation == "scaled_dot_product_attention"
    assert origin.module == plants.path(model, plants.attention(model, layer))
    for step in origin.evidence["layers"]:
        assert (step["difference"] > step["bound"]) == (step["layer"] >= layer)


def test_float32_does_not_leak(build, batch_of, name):
    with emulate_mps("2.11", macos=26):
        assert trace(build(name), batch_of((0, 0), length=9)) is None


def test_comparing_can_be_left_out(build, batch_of):
    with emulate_mps("2.11", macos=26):
        assert trace(build("tiny-llama", "bfloat16"), batch_of((0, 0)), compare=False) is None


def test_a_plain_cpu_is_compared_on_request_only(build, batch_of, monkeypatch):
    compared = []
    monkeypatch.setattr(device_difference, "_differences", lambda *_: compared.append(1) or [])
    assert trace(build("tiny-llama"), batch_of()) is None
    assert not compared
    assert trace(build("tiny-llama"), batch_of(), compare=True) is None
    assert compared


def test_the_bound_is_twice_the_error_of_eager_attention(build, batch_of, choose):
    """Computed here by other means: transformers' own switch, and no hooks."""
    model, batch = build("tiny-llama", "bfloat16"), batch_of((0, 0), length=9)
    with emulate_mps("2.11", macos=26):
        origin = trace(model, batch)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        choose(model, "eager")
        eager = model(**inputs).logits
        choose(model, "sdpa")  # Eager attention takes its softmax in float32, in a float64 model too.
        exact = model.double()(**inputs).logits
    error = float((eager.double() - exact).abs().max())
    assert origin.evidence["logits"]["bound"] == pytest.approx(2 * error, rel=1e-9)


def test_nan_that_only_the_device_makes_is_the_devices(build, batch_of):
    """A kernel that writes NaN into rows that may attend: not the mask's fault."""

    class Broken(EmulatedMPS):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = super().__torch_function__(func, types, args, kwargs)
            if active() is not None and getattr(func, "__name__", "") == "scaled_dot_product_attention":
                result = result.clone()
                result[0, 1, 6] = float("nan")
            return result

    with Broken(Emulation("2.9")):
        origin = trace(build("tiny-gpt2"), batch_of())
    assert (origin.cause, origin.layer) == ("wrong_device", 0)
    assert origin.operation == "scaled_dot_product_attention"
    assert origin.evidence["output"]["non_finite"]["positions"] == "6"


def test_the_judge_finds_nothing_in_a_layer_that_is_right(build, batch_of):
    model, batch = build("tiny-llama"), batch_of()
    judge = PerOperation(model, model.model.layers[1])
    with judge.watching(), torch.no_grad():
        model(**batch)
    assert judge.worst is None


def bloom():
    torch.manual_seed(0)
    config = transformers.BloomConfig(vocab_size=259, hidden_size=16, n_head=2, n_layer=2)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def test_eager_attention_in_float64_is_not_wrong_for_its_softmax_in_float32(batch_of):
    model = build_model("tiny-llama", dtype="float64", attention="eager")
    with torch.no_grad():
        found = device_difference._differences(model, batch_of((0, 0), labels=False))
    assert found[-1].distance > 0
    assert not any(difference.wrong for difference in found)


@pytest.mark.parametrize("make", [bloom, lambda: build_model("tiny-llama", dtype="float64")])
def test_a_left_padded_model_is_compared_where_float64_eager_has_fully_masked_rows(make, batch_of, caplog):
    """Without SDPA the reference is eager in float64, whose softmax in float32 makes such rows NaN."""
    model, batch = make(), batch_of((3, 0), labels=False)
    with torch.no_grad():
        assert bool(device_difference._differences(model, batch)[-1].bound > 0)
    assert trace(model, batch, compare=True) is None
    assert "Not compared" not in caplog.text


def test_a_wrong_operation_of_a_left_padded_model_without_sdpa_is_found(batch_of):
    class Off(EmulatedMPS):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = super().__torch_function__(func, types, args, kwargs)
            if active() is not None and getattr(func, "__name__", "") == "softmax":
                return result * 1.25
            return result

    with Off(Emulation("2.9")):
        origin = trace(bloom(), batch_of((3, 0), labels=False))
    assert (origin.cause, origin.layer, origin.operation) == ("wrong_device", 0, "softmax")


def test_a_model_whose_reference_is_not_finite_is_not_compared(batch_of, caplog):
    """What the CPU gives cannot judge a device then."""

    class NoFloat64(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Embedding(259, 4)

        def forward(self, input_ids, attention_mask):
            hidden = self.layer(input_ids)
            return {"logits": hidden * (torch.nan if hidden.dtype == torch.float64 else 1.0)}

    assert trace(NoFloat64(), batch_of((3, 0), labels=False), compare=True) is None
    assert "Not compared with the CPU" in caplog.text
