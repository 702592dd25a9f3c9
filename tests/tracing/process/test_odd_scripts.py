"""Code that a watch must neither end nor change, however odd its tensors, modules and calls are."""

import gc
import io
import subprocess
import sys
import threading
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import mpsdiag


class Calls(nn.Module):
    """A module that calls a function."""

    def __init__(self, function, **buffers):
        super().__init__()
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, *args, **kwargs):
        return self.function(*args, **kwargs)


class Refusing(torch.Tensor):
    """Knows one operation."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func.__name__ not in ("mul", "__get__"):
            raise TypeError(f"no {func.__name__}")
        return super().__torch_function__(func, types, args, kwargs)


class FeatureCache:
    """What cannot be copied."""

    def __init__(self):
        self.lock = threading.Lock()


class Unhashable(nn.Linear):
    __hash__ = None


class Raising:
    @property
    def loss(self):
        raise RuntimeError("not computed")


ROW = torch.ones(3)
HOLDS_ITSELF = [ROW]
HOLDS_ITSELF.append(HOLDS_ITSELF)


@pytest.mark.parametrize(
    ("module", "args", "kwargs"),
    [
        pytest.param(Unhashable(3, 3), (ROW,), {}, id="module without a hash"),
        pytest.param(Calls(lambda cache: ROW), (FeatureCache(),), {}, id="input that cannot be copied"),
        pytest.param(Calls(lambda value: ROW), (HOLDS_ITSELF,), {}, id="input that holds itself"),
        pytest.param(Calls(lambda: HOLDS_ITSELF), (), {}, id="output that holds itself"),
        pytest.param(Calls(Raising), (), {}, id="output whose loss raises"),
        pytest.param(nn.LazyBatchNorm1d(), (torch.ones(2, 3),), {}, id="buffers without a shape"),
        pytest.param(Calls(lambda row, labels: row), (ROW,), {"labels": torch.eye(3).long().to_sparse()}, id="labels"),
    ],
)
def test_what_cannot_be_followed_runs_and_is_named(module, args, kwargs):
    with mpsdiag.watch() as seen, torch.no_grad():
        module(*args, **kwargs)
        nn.Linear(3, 3)(ROW * float("nan"))
    assert [finding.cause for finding in seen.findings] == ["bad_inputs"]
    assert seen.report.watched.forwards == 2
    assert sum(seen.report.watched.unwatched.values()) >= 1
    assert "not watched" in str(seen.report)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint64, torch.bool, torch.complex64, torch.float32])
def test_labels_that_cannot_be_ignored_do_not_keep_the_output_from_being_judged(dtype):
    with mpsdiag.watch() as seen, torch.no_grad():
        Calls(lambda row, labels: row)(ROW * float("nan"), labels=torch.ones(3, dtype=dtype))
    assert [finding.cause for finding in seen.findings] == ["bad_inputs"]
    assert not seen.report.watched.unwatched


def test_a_mask_without_data_ends_neither_the_forward_nor_the_watch():
    before, query = nn.Module.__call__, torch.ones(2, 2, 3, 4, device="meta")
    attention = Calls(lambda q, mask: F.scaled_dot_product_attention(q, q, q, attn_mask=mask))
    with mpsdiag.watch():
        attention(query, torch.ones(3, 3, device="meta"))
    assert nn.Module.__call__ is before


# In a process of its own: with torch 2.7 and 2.8 the first use of the compiler's code within our own operations failed,
# and the script could not compile from then on.
WITHOUT_DATA = """
import torch, mpsdiag
from torch import nn
class Rows(nn.Module):
    def forward(self, row, mask, labels):
        return nn.functional.scaled_dot_product_attention(row, row, row, attn_mask=mask)
rows, mask, labels = torch.ones(1, 1, 3, 4), torch.ones(3, 3, dtype=torch.bool), torch.ones(3, dtype=torch.long)
with mpsdiag.watch() as seen, torch.no_grad():
    Rows()(rows, mask, labels=labels.to("meta"))
    Rows()(rows.to("meta"), mask.to("meta"), labels)
assert not seen.report.watched.unwatched, seen.report.watched.unwatched
import torch._dynamo
"""


def test_what_has_no_data_is_left_alone():
    done = subprocess.run([sys.executable, "-c", WITHOUT_DATA], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_tensor_that_knows_few_operations_is_only_asked_for_those():
    weight = nn.Parameter(torch.ones(3))
    with mpsdiag.watch() as seen:
        assert type(Calls(lambda row: row * weight)(ROW.as_subclass(Refusing))) is Refusing
    assert not seen.report.watched.unwatched


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch 2.15
def test_torchscript_is_watched_and_may_differentiate():
    with mpsdiag.watch() as seen, torch.no_grad():
        model = torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
        model(torch.ones(2, 3))
        model(torch.ones(2, 3) * float("nan"))

        @torch.jit.script
        def slope(x: torch.Tensor):
            return torch.autograd.grad([x.square().sum()], [x])[0]

        with torch.enable_grad():
            assert torch.equal(slope(torch.ones(3, requires_grad=True)), torch.full((3,), 2.0))
    assert len(seen.findings) == 1
    assert not seen.report.watched.unwatched


@pytest.mark.needs(torch="2.7")  # That of 2.5 takes no edge.
def test_a_backward_may_start_from_an_edge_or_from_what_can_be_read_once():
    model = nn.Linear(3, 1)
    with mpsdiag.watch() as seen:
        edge = torch.autograd.graph.get_gradient_edge(model(ROW))
        torch.autograd.backward(edge, torch.ones(1))
        torch.autograd.backward(loss for loss in [model(ROW)])
    assert torch.equal(model.weight.grad, torch.full((1, 3), 2.0))
    assert seen.report.watched.backwards == 2
    assert not seen.report.watched.unwatched


@pytest.mark.needs(torch="2.13")  # That of 2.8 does not say whether a saved tensor is packed.
def test_what_a_script_packed_away_is_not_unpacked_for_the_watch():
    model, ran, unpacked = nn.Linear(3, 2), [], []

    def loss(logits):
        ran.append(1)
        return F.cross_entropy(logits, torch.tensor([1])).log() / 2

    with mpsdiag.watch():
        checkpoint(loss, model(ROW[None]), use_reentrant=False).backward()
        assert len(ran) == 2
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: unpacked.append(1) or t):
            value = loss(model(ROW[None]))
        value.backward()
    watched = len(unpacked)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: unpacked.append(1) or t):
        value = loss(model(ROW[None]))
    value.backward()
    assert len(unpacked) == 2 * watched


def test_weights_that_are_returned_and_outputs_that_are_saved_bear_no_trace():
    prompt = nn.ParameterList([torch.ones(3)])
    model = Calls(lambda: prompt[0])
    with mpsdiag.watch(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            model().sum().backward()
        torch.save(nn.Linear(3, 3)(ROW), io.BytesIO())
    assert not prompt[0]._backward_hooks


def test_models_and_optimizers_that_a_script_lets_go_are_gone():
    kept = []
    with mpsdiag.watch() as seen:
        for _ in range(3):
            model = nn.Linear(3, 3)
            optimizer = torch.optim.Adam(model.parameters())
            model(ROW).sum().backward()
            optimizer.step()
            kept += [weakref.ref(model), weakref.ref(model.weight), weakref.ref(optimizer)]
        del model, optimizer
        gc.collect()
        assert [one() for one in kept] == [None] * 9
        big = []
        for _ in range(100):
            root = torch.ones(1000, requires_grad=True) * 2
            big.append(weakref.ref(root))
            root[0].backward()
        assert len(seen._watch._unread.roots) < 60


@pytest.mark.parametrize("named", [False, True])
def test_each_call_of_a_closure_is_read_with_its_own_gradients(named):
    class OnlyNamed(torch.optim.SGD):
        def step(self, *, closure):
            return super().step(closure)

    model, read = nn.Linear(3, 1), []
    optimizer = (OnlyNamed if named else torch.optim.SGD)(model.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = model(ROW).square().sum()
        loss.backward()
        read.append(len(seen._watch._unread.forwards))
        return loss

    with mpsdiag.watch() as seen:
        for _ in range(2):
            optimizer.step(closure=closure) if named else optimizer.step(closure)
            assert not seen._watch._unread.forwards
    assert read == [1, 1]


def test_a_teacher_called_before_the_loss_does_not_hide_who_made_it_bad():
    student, teacher = nn.Linear(3, 3), nn.Linear(3, 3)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with mpsdiag.watch() as seen:
        hidden = student(ROW)
        with torch.no_grad():
            target = teacher(ROW)
        ((hidden * 0).log() * target).mean().backward()
        optimizer.step()
    assert "log takes the logarithm of zero" in seen.findings[0].summary
    assert [finding.phase for finding in seen.findings] == ["backward"]


def test_compiled_code_does_not_depend_on_whether_a_module_calls_it():
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    layer = nn.Linear(3, 3)

    @torch.compile(backend=backend, fullgraph=True)
    def function(row):
        return layer(row) + 1

    with mpsdiag.watch():
        function(ROW)
        Calls(function)(ROW)
    torch._dynamo.reset()
    assert len(compiled) == 1
