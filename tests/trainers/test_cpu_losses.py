"""Every loss of torch.nn.functional, inside the block and outside it."""

import inspect
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.tokenization_utils_base import BatchEncoding

from mpsdiag import emulate_mps
from mpsdiag.emulation.mode import active
from mpsdiag.inputs.modules import over_tensors
from mpsdiag.trainers.cpu_losses import LossesOnCPU

VALUES = torch.linspace(-2, 2, 12).view(4, 3)
OTHERS = torch.linspace(0.05, 0.9, 12).view(4, 3)
CLASSES = torch.tensor([0, 2, -100, 1])
SIGNS = torch.tensor([1.0, -1.0, 1.0, -1.0])

CALLS = {
    "cross_entropy": lambda f: f.cross_entropy(VALUES, CLASSES),
    "cross_entropy by keyword": lambda f: f.cross_entropy(input=VALUES, target=CLASSES, reduction="sum"),
    "cross_entropy with weights": lambda f: f.cross_entropy(VALUES, CLASSES, torch.tensor([0.2, 0.3, 0.5])),
    "cross_entropy smoothed": lambda f: f.cross_entropy(VALUES, CLASSES, label_smoothing=0.1),
    "cross_entropy of probabilities": lambda f: f.cross_entropy(VALUES, OTHERS),
    "cross_entropy of images": lambda f: f.cross_entropy(VALUES.view(1, 3, 4), CLASSES.view(1, 4)),
    "nll_loss": lambda f: f.nll_loss(VALUES, CLASSES),
    "mse_loss": lambda f: f.mse_loss(VALUES, OTHERS),
    "l1_loss": lambda f: f.l1_loss(VALUES, OTHERS, reduction="none"),
    "smooth_l1_loss": lambda f: f.smooth_l1_loss(VALUES, OTHERS),
    "huber_loss": lambda f: f.huber_loss(VALUES, OTHERS),
    "kl_div": lambda f: f.kl_div(VALUES, OTHERS, reduction="batchmean"),
    "binary_cross_entropy": lambda f: f.binary_cross_entropy(OTHERS, OTHERS.round()),
    "binary_cross_entropy_with_logits": lambda f: f.binary_cross_entropy_with_logits(VALUES, OTHERS),
    "hinge_embedding_loss": lambda f: f.hinge_embedding_loss(VALUES[:, 0], SIGNS),
    "multilabel_soft_margin_loss": lambda f: f.multilabel_soft_margin_loss(VALUES, OTHERS.round()),
    "triplet_margin_with_distance_loss": lambda f: f.triplet_margin_with_distance_loss(VALUES, OTHERS, VALUES.flip(0)),
    "cosine_embedding_loss": lambda f: f.cosine_embedding_loss(VALUES, OTHERS, SIGNS),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_loss_is_the_stock_one(call):
    compute = CALLS[call]
    stock = compute(functional)
    with LossesOnCPU(chunk_bytes=1):
        assert torch.equal(compute(functional), stock)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_cross_entropy_in_float32(dtype):
    logits = (torch.randn(20, 30, generator=torch.Generator().manual_seed(0)) * 5).to(dtype)
    labels = torch.arange(20)
    with torch.autocast("cpu", torch.bfloat16):
        stock = functional.cross_entropy(logits, labels)
        with LossesOnCPU(chunk_bytes=600):
            ours = functional.cross_entropy(logits, labels)
    assert ours.dtype == stock.dtype == torch.float32
    assert torch.equal(ours, stock)


def test_the_loss_itself_does_not_run_under_emulation(monkeypatch):
    """The CPU is no MPS: what is computed there must not meet MPS's defects."""
    seen = []
    monkeypatch.setattr(
        "mpsdiag.trainers.cpu_losses.cross_entropy", lambda *_, **__: seen.append(active()) or torch.tensor(1.0)
    )
    with emulate_mps("2.8"), LossesOnCPU():
        functional.cross_entropy(VALUES, CLASSES)
        assert active() is not None
    assert seen == [None]


@pytest.mark.parametrize("name", sorted(name for name in dir(functional) if name.endswith("_loss")))
def test_every_function_that_ends_in_loss_is_a_loss(name):
    """They are known by the end of their name, so torch must call nothing else by such a name."""
    first, *others = inspect.signature(getattr(functional, name)).parameters
    assert {first, *others} & {"target", "targets", "label", "margin", "weight"}, first


def test_everything_else_is_left_alone():
    with LossesOnCPU():
        assert torch.equal(functional.softmax(VALUES, -1), torch.softmax(VALUES, -1))
        assert torch.equal(VALUES + 1, VALUES.add(1))


def test_over_tensors_keeps_the_kind_of_every_container():
    pair = namedtuple("pair", ["left", "right"])  # noqa: PYI024 - an untyped one is what is tested
    output = CausalLMOutputWithPast(loss=torch.ones(1), logits=torch.ones(2))
    nested = {
        "output": output,
        "pair": pair(torch.ones(1), None),
        "list": [torch.ones(1), "word", 3],
        "ordered": OrderedDict(a=torch.ones(1)),
        "encoding": BatchEncoding({"input_ids": torch.ones(1)}),
    }
    doubled = over_tensors(nested, lambda tensor: tensor * 2)
    assert type(doubled["output"]) is CausalLMOutputWithPast
    assert doubled["output"].logits.tolist() == [2.0, 2.0]
    assert doubled["output"].hidden_states is None
    assert doubled["pair"] == pair(torch.tensor([2.0]), None)
    assert doubled["list"][1:] == ["word", 3]
    assert type(doubled["ordered"]) is OrderedDict
    assert doubled["encoding"]["input_ids"].item() == 2.0
    assert output.logits.tolist() == [1.0, 1.0]


@pytest.mark.cuda
def test_losses_of_a_gpu_are_computed_on_the_cpu():
    with LossesOnCPU(chunk_bytes=60):
        ours = functional.cross_entropy(VALUES.cuda(), CLASSES.cuda())
    assert ours.device.type == "cuda"
    assert ours.cpu() == functional.cross_entropy(VALUES, CLASSES)
