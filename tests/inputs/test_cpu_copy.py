import copy

import pytest
import torch
from torch import nn

from mpsdiag.inputs.models import build_model
from mpsdiag.inputs.modules import copy_to_cpu, mark_watcher


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
def test_the_copy_computes_the_same_and_keeps_tied_weights(name):
    model = build_model(name, max_positions=64).train()
    twin = copy_to_cpu(model)
    ids = torch.arange(3, 23).view(2, 10)
    assert torch.equal(twin(ids).logits, model.eval()(ids).logits)
    assert not twin.training
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (twin.get_output_embeddings().weight is twin.get_input_embeddings().weight) is tied


def test_it_leaves_the_original_alone_and_shares_what_is_on_the_cpu():
    model = build_model("tiny-gpt2", max_positions=64)
    twin = copy_to_cpu(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    weight = model.get_input_embeddings().weight
    assert twin.get_input_embeddings().weight is not weight
    assert twin.get_input_embeddings().weight.data_ptr() == weight.data_ptr()


def test_from_another_device_nothing_is_doubled_there_first(monkeypatch):
    """Tensors of a device that holds no data stand for it: an ordinary deep copy would copy each of them there."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.loose = torch.ones(2)
    copied = []
    stock = copy.deepcopy
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", lambda tensor, memo: copied.append(tensor) or stock(0, memo))
    twin = copy_to_cpu(model)
    assert not copied
    assert twin.loose.device.type == "cpu"


def test_hooks_that_only_count_are_left_behind():
    model = nn.Linear(2, 2)
    seen = []
    model.register_forward_hook(mark_watcher(lambda *_: seen.append("watcher")))
    model.register_forward_hook(lambda *_: seen.append("user"))
    copy_to_cpu(model)(torch.ones(1, 2))
    assert seen == ["user"]
    model(torch.ones(1, 2))
    assert seen == ["user", "watcher", "user"]
