"""The watch over a process, in this process: what it sees, what it finds, and what it leaves as it was."""

import copy
import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import mpsdiag
from mpsdiag.tracing.process.session import NonFiniteFoundError
from mpsdiag.tracing.process.watched import ScriptReport


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 5))


@pytest.fixture
def inputs():
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


def line_of(word):
    text = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(text, 1) if line.endswith(f"# {word}"))


def test_a_clean_training_is_counted_and_comes_out_as_unwatched(inputs):
    def train():
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            loss = nn.functional.cross_entropy(model(inputs), torch.arange(6) % 5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [weight.detach().clone() for weight in model.parameters()]

    with mpsdiag.watch() as seen:
        watched = train()
    assert all(torch.equal(a, b) for a, b in zip(watched, train(), strict=True))
    assert seen.findings == []
    counts = seen.report.watched
    assert (counts.forwards, counts.backwards, counts.steps) == (3, 3, 3)
    assert counts.models == {"Sequential": 3}
    assert "nothing found in 3 forwards" in str(seen.report)


def test_everything_is_put_back():
    before = nn.Module.__call__, torch.autograd.backward, torch.amp.GradScaler.step
    function = nn.functional.scaled_dot_product_attention
    with mpsdiag.watch():
        assert nn.Module.__call__ is not before[0]
    assert (nn.Module.__call__, torch.autograd.backward, torch.amp.GradScaler.step) == before
    assert nn.functional.scaled_dot_product_attention is function


def test_a_block_that_runs_nothing_is_not_called_clean():
    with mpsdiag.watch() as seen:
        pass
    assert "nothing was watched" in str(seen.report)


def test_a_finding_names_the_line_the_step_and_the_count(inputs):
    model, bad = small(), inputs.clone()
    bad[2, 3] = float("nan")
    with mpsdiag.watch() as seen, torch.no_grad():
        model(inputs)
        for _ in range(3):
            model(bad)  # the bad call
    (finding,) = seen.findings
    assert (finding.cause, finding.file, finding.line) == ("bad_inputs", __file__, line_of("the bad call"))
    assert finding.user_code == [f"{__file__}:{finding.line}"]
    assert (finding.step, finding.count) == (0, 3)
    assert f"{__file__}:{finding.line}" in finding._repr_markdown_()
    assert ScriptReport.model_validate(json.loads(json.dumps(seen.report.to_dict()))).findings == [finding]


def test_stop_raises_at_the_first(inputs):
    model, done = small(), []

    def run():
        with mpsdiag.watch(stop=True), torch.no_grad():
            for number, factor in enumerate((1.0, float("nan"), 1.0, 1.0)):
                model(inputs * factor)
                done.append(number)

    with pytest.raises(NonFiniteFoundError, match="bad_inputs"):
        run()
    assert done == [0]  # On the CPU at once.


def test_only_one_model_is_watched(inputs):
    model, other = small(), small(1)
    with mpsdiag.watch(model) as seen, torch.no_grad():
        other(inputs * float("nan"))
        model(inputs)
    assert seen.findings == []
    assert seen.report.watched.forwards == 1
    with pytest.raises(mpsdiag.BadInput, match=r"not a torch\.nn\.Module"), mpsdiag.watch("gpt2"):
        pass


def test_bad_weights_after_a_step_are_the_step(inputs):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=3e38)
    with mpsdiag.watch() as seen:
        for _ in range(2):
            optimizer.zero_grad()
            (model(inputs).sum() * 10).backward()
            optimizer.step()
    assert (seen.findings[0].cause, seen.findings[0].phase) == ("divergence", "optimizer")


def test_the_last_step_is_looked_at_too(inputs):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=3e38)
    with mpsdiag.watch() as seen:
        (model(inputs).sum() * 10).backward()
        optimizer.step()
    assert [finding.phase for finding in seen.findings] == ["optimizer"]


def test_a_bad_backward_is_traced_with_the_weights_as_they_were(inputs):
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small()

        def forward(self, values):
            hidden = self.inner(values)
            return (hidden - hidden.detach()).abs().sqrt().sum() + hidden.sum()

    model = Root()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with mpsdiag.watch() as seen:
        model(inputs).backward()
        before = copy.deepcopy([weight.grad for weight in model.parameters()])
        optimizer.step()
    (finding,) = seen.findings
    assert (finding.cause, finding.phase, finding.operation) == ("derivative", "backward", "sqrt")
    # The gradients that the optimizer got are those of the script, not of the run in detail.
    pairs = zip(before, [weight.grad for weight in model.parameters()], strict=True)
    assert all(torch.equal(a, b) or bool(torch.isnan(a).any()) for a, b in pairs)


def test_gradients_that_are_asked_for_are_a_backward_too(inputs):
    model = small()
    with mpsdiag.watch() as seen:
        torch.autograd.grad(outputs=model(inputs).sum(), inputs=list(model.parameters()))
        torch.func.grad(lambda values: model(values).sum())(inputs)
        torch.autograd.grad(model(inputs).sum().log() * float("nan"), list(model.parameters()))
    assert seen.report.watched.backwards == 2
    assert "the loss computed from them is not" in seen.findings[0].summary


@pytest.mark.parametrize("positional", [True, False])
def test_the_loss_outside_of_the_model_has_no_labels(inputs, positional):
    model, targets = small(), torch.full((6,), -100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with mpsdiag.watch() as seen:
        loss = nn.functional.cross_entropy(model(inputs) if positional else model(input=inputs), targets)
        loss.backward()
        optimizer.step()
    assert [finding.cause for finding in seen.findings] == ["no_labels"]
    assert seen.report.watched.unlabelled == 1


@pytest.mark.parametrize(
    ("loss", "cause", "what"),
    [
        (lambda p: -(torch.tensor([0.0, 1.0]) * p.log()).sum(), "unknown", "log takes the logarithm of zero in 1 of 2"),
        (lambda p: (p.sum() / (p * 0).sum()).mean(), "division_by_zero", "div divides by zero in 1 of 1 values"),
    ],
)
def test_what_is_zero_in_a_loss_outside_of_the_model_is_named(loss, cause, what):
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([0.0, 1.0]))
    with mpsdiag.watch() as seen:
        loss(model(torch.ones(1, 1))).backward()
    (finding,) = seen.findings
    assert finding.cause == cause
    assert what in finding.summary


@pytest.mark.parametrize(
    "output",
    [
        torch.eye(3).to_sparse(),
        torch.ones(3, dtype=torch.complex64),
        torch.ones(3).to(torch.float8_e4m3fn),
        torch.ones(0),
        torch.ones(3, device="meta"),
        None,
        {"logits": "words"},
    ],
    ids=["sparse", "complex", "eight bits", "empty", "meta", "nothing", "words"],
)
def test_outputs_of_any_kind_are_let_through(output):
    class Gives(nn.Module):
        def forward(self, values):
            return output

    with mpsdiag.watch() as seen:
        assert Gives()(torch.ones(2)) is output
    assert (seen.findings, seen.report.watched.forwards) == ([], 1)


def test_a_second_backward_of_one_graph_fails_as_it_does_unwatched(inputs):
    loss = nn.functional.cross_entropy(small()(inputs), torch.arange(6) % 5)
    with mpsdiag.watch():
        loss.backward()
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            loss.backward()


def test_running_statistics_and_random_numbers_are_those_of_the_script(inputs):
    def run(values):
        torch.manual_seed(3)
        model = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
        with torch.no_grad():
            model(values)
            model(inputs)
        return [buffer.clone() for buffer in model.buffers()], torch.rand(3)

    bad = inputs.clone()
    bad[0, 0] = float("inf")
    with mpsdiag.watch() as seen:
        buffers, numbers = run(bad)
    expected, expected_numbers = run(bad)
    assert seen.findings
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(buffers, expected, strict=True))
    assert torch.equal(numbers, expected_numbers)


def test_what_cannot_be_run_again_is_called_so(inputs):
    model = small()
    bad = inputs * float("nan")
    with mpsdiag.watch() as seen:
        with torch.no_grad():
            model(inputs)
        model(bad)  # With gradients, so it is read later.
        bad.zero_()
    assert "cannot be run again to examine it: its inputs have been overwritten" in seen.findings[0].summary
    assert seen.report.watched.not_repeated == 1


def test_a_batch_that_is_filled_anew_for_each_call_is_copied_from_the_second_on(inputs):
    model, batch = small(), inputs.clone()
    with mpsdiag.watch() as seen, torch.no_grad():
        for factor in (1.0, 1.0, float("nan"), 1.0):
            batch.copy_(inputs * factor)
            model(batch)
    assert [(finding.cause, finding.count) for finding in seen.findings] == [("bad_inputs", 1)]


def test_an_input_that_the_call_writes_into_is_put_back(inputs):
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small()

        def forward(self, values, factor):
            values.div_(factor)
            return self.inner(values)

    model, given = Scales(), inputs.clone()
    with mpsdiag.watch() as seen, torch.no_grad():
        for factor in (1.0, 0.0):
            model(given, torch.tensor(factor))
    (finding,) = seen.findings
    assert (finding.cause, finding.operation, finding.count) == ("division_by_zero", "div", 1)
    assert not bool(torch.isfinite(given).any())  # the script's own tensor stays as its model left it


def test_a_buffer_that_the_call_replaces_is_put_back(inputs):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("left", torch.tensor(2.0))
            self.inner = small()

        def forward(self, values):
            self.left = self.left - 1
            return self.inner(values / self.left)

    model = Counts()
    with mpsdiag.watch() as seen, torch.no_grad():
        model(inputs)
        model(inputs)
    assert [(finding.cause, finding.operation) for finding in seen.findings] == [("division_by_zero", "div")]
    assert float(model.left) == 0.0


def test_a_forward_that_gives_something_else_each_time_is_called_so(inputs):
    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = small(), 0

        def forward(self, values):
            self.calls += 1
            return self.inner(values / (self.calls - 1 or float("nan")))

    with mpsdiag.watch() as seen, torch.no_grad():
        Once()(inputs)
    assert (seen.findings[0].cause, seen.findings[0].operation) == ("unknown", "forward")
    assert "is finite when run again" in seen.findings[0].summary


def test_what_only_an_unwatched_kernel_gives_is_called_so(inputs):
    class Kernel(nn.Module):
        def forward(self, values):
            watched = bool(torch.overrides._get_current_function_mode_stack())
            return values if watched else values * float("nan")

    with mpsdiag.watch() as seen, torch.no_grad():
        Kernel()(inputs)
    assert "whenever it runs as it is, but finite operation by operation" in seen.findings[0].summary


def test_steps_that_gradscaler_skips_are_no_finding(inputs):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    with mpsdiag.watch() as seen:
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(model(inputs).square().sum() * 1e3).backward()
            scaler.step(optimizer)
            scaler.update()
    assert seen.findings == []
    assert seen.report.watched.skipped_steps == 2


def test_a_forward_with_any_arguments_is_run_again(inputs):
    class Any(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small()

        def forward(self, *values, **named):
            return self.inner(values[0] / named["by"])

    with mpsdiag.watch() as seen, torch.no_grad():
        Any()(inputs, by=torch.zeros(()))
    assert [(f.cause, f.operation) for f in seen.findings] == [("division_by_zero", "div")]


# torch 2.8's own LBFGS converts the loss of the closure, with or without a watch.
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning:torch.optim.lbfgs")
def test_a_closure_is_read_before_the_update(inputs):
    model = small()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    bad = inputs.clone()
    bad[0, 0] = float("nan")

    def closure():
        optimizer.zero_grad()
        loss = model(bad).square().sum()
        loss.backward()
        return loss

    with mpsdiag.watch() as seen:
        optimizer.step(closure)
    assert seen.findings[0].cause == "bad_inputs"
    assert seen.findings[0].step == 0


class Far(torch.Tensor):
    """A tensor on a device that is not there; counts how often somebody waits for it."""

    waits: ClassVar[list[str]] = []

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device="lazy:0"
        )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        to = torch.device((kwargs or {}).get("device") or "lazy:0")
        args, kwargs = tree_map(lambda one: one.inner if isinstance(one, Far) else one, (args, kwargs or {}))
        result = func(*args, **{name: "cpu" if name == "device" else value for name, value in kwargs.items()})
        if to.type == "cpu" or func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            cls.waits.append(str(func))
            return result
        return tree_map(lambda one: Far(one) if isinstance(one, torch.Tensor) else one, result)


@pytest.mark.parametrize("accumulated", [1, 4])
def test_a_training_step_waits_once_for_the_device_and_an_evaluation_once_a_batch(inputs, accumulated):
    model = small()
    for module in model:
        for name, weight in list(module.named_parameters()):
            setattr(module, name, nn.Parameter(Far(weight.detach())))
    optimizer, batch = torch.optim.SGD(model.parameters(), lr=0.1), Far(inputs)
    Far.waits.clear()
    with mpsdiag.watch() as seen:
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(accumulated):
                model(batch).square().mean().backward()
            optimizer.step()
        assert len(Far.waits) == 3
        with torch.no_grad():
            for _ in range(5):
                model(batch)
        assert len(Far.waits) == 3 + 4  # that of the last batch is not read yet
    assert seen.findings == []


class Waits(TorchDispatchMode):
    """Lets the CPU stand for a device, and counts what would wait for it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_a_mode_that_stands_for_a_device_sees_no_more_waits_than_steps(inputs):
    model, labels = small(), torch.zeros(len(inputs), dtype=torch.long)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Waits() as waits, mpsdiag.watch() as seen:
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        trained = waits.count
        with torch.no_grad():
            for _ in range(5):
                model(inputs)
    assert (seen.findings, seen.report.watched.forwards) == ([], 8)
    assert trained <= 3
    assert waits.count <= 3 + 5 + 1


def test_compiled_models_are_watched_from_outside(inputs):
    model = torch.compile(small(), backend="eager", fullgraph=True)
    with mpsdiag.watch() as seen, torch.no_grad():
        model(inputs)
        model(inputs * float("inf"))
    assert [finding.cause for finding in seen.findings] == ["bad_inputs"]
    assert seen.report.watched.models == {"OptimizedModule": 2}


def test_a_cache_that_the_call_appends_to_is_put_back():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).eval()
    ids, mask = torch.randint(3, 64, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    with mpsdiag.emulate_mps("2.8"), mpsdiag.watch() as seen:
        model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False, pad_token_id=0)
        first = seen.findings[0]
    assert (first.cause, first.layer, first.operation) == ("dead_rows", 0, "scaled_dot_product_attention")
    assert first.file == __file__


def test_a_recorded_batch_is_replayed_by_trace(tmp_path):
    from mpsdiag.tracing.cases.recorded_case import read_case
    from mpsdiag.tracing.process.session import _recorded

    calls = []
    with mpsdiag.watch() as seen:
        seen._watch.findings.found = lambda finding, forward: calls.append(_recorded(tmp_path / "case", forward))
        with torch.no_grad():
            small()(torch.full((2, 8), float("nan")))
        seen.findings  # noqa: B018 - reads the flags
    about, batch, weights = read_case(tmp_path / "case")
    assert calls == [tmp_path / "case"]
    assert (about.phase, about.grad, list(batch), weights) == ("training", False, ["input"], None)


def test_what_a_checkpoint_runs_again_is_no_forward(inputs):
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small()

        def forward(self, values):
            return checkpoint(self.inner, values, use_reentrant=False)

    with mpsdiag.watch() as seen:
        Checkpointed()(inputs).sum().backward()
    assert seen.report.watched.models == {"Checkpointed": 1}


def test_a_mask_for_each_head_is_counted_as_attention_broadcasts_it():
    class Attention(nn.Module):
        def forward(self, query, mask):
            return nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=mask)

    mask = torch.ones(4, 5, 5, dtype=torch.bool)  # (heads, queries, keys): no sequences
    mask[1, 2] = mask[2, 2] = mask[2, 4] = False
    with mpsdiag.watch() as seen, torch.no_grad():
        Attention()(torch.ones(2, 4, 5, 8), mask)
    watched = seen.report.watched
    assert (watched.masked_rows, watched.masked_rows_nan) == (2 * 2, False)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("bad", [None, "loss", "logits"])
def test_the_loss_and_the_logits_are_judged_each_for_itself(bad, grad, inputs):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small()

        def forward(self, x):
            values = {"loss": self.inner(x).mean(), "logits": self.inner(x)}
            return {name: value / 0 if name == bad else value for name, value in values.items()}

    with mpsdiag.watch() as seen, torch.set_grad_enabled(grad):
        Both()(inputs)
    assert [finding.operation for finding in seen.findings] == ([] if bad is None else ["div"])
