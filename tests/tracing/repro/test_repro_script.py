"""Scripts that stand alone: reduced, run before they are handed over, and refused where there is nothing to show."""

import ast
import contextlib
import io
import runpy
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from mpsdiag import emulate_mps, environment
from mpsdiag.emulation.mode import emulated
from mpsdiag.emulation.selection import Emulation
from mpsdiag.errors import BadInput
from mpsdiag.tracing.passes.forward import trace_batches
from mpsdiag.tracing.repro import repro_script as repro
from mpsdiag.tracing.repro.reduce import plainest, smallest
from mpsdiag.tracing.watch.calls import TorchCall


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Run scripts in this process: a Python of its own takes seconds. The test with a child does without."""

    def run(text, emulation):
        path = tmp_path / "inside.py"
        path.write_text(text)
        monkeypatch.setattr(sys, "argv", [str(path)])
        out = io.StringIO()
        context = emulated(emulation)
        with contextlib.redirect_stdout(out), context, pytest.raises(SystemExit) as end:
            runpy.run_path(str(path))
        return out.getvalue().strip().splitlines()[-1] if end.value.code == 1 else None

    monkeypatch.setattr(repro, "_run", run)


def write(tmp_path, model, batch, release=None, macos=15):
    emulation = None if release is None else Emulation(release, macos)
    context = contextlib.nullcontext() if release is None else emulate_mps(release, macos)
    with context:
        traced = trace_batches(model, [batch])
    path = tmp_path / "repro.py"
    written, note = repro.write_repro(
        path, traced.origin, traced.call, environment.gather(), grad=False, emulation=emulation
    )
    return (written, note), path.read_text() if path.exists() else ""


def assigned(text):
    """The tensors that the script makes, by name."""
    names = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and "torch." in ast.unparse(node.value):
            with contextlib.suppress(Exception):
                names[node.targets[0].id] = eval(  # noqa: S307 - our own script
                    compile(ast.Expression(node.value), "repro", "eval"), {"torch": torch}
                )
    return {name: value for name, value in names.items() if isinstance(value, torch.Tensor)}


def test_dead_rows_come_down_to_one_number(build, batch_of, tmp_path, monkeypatch):
    """With a child: the script as the user runs it."""
    (written, note), text = write(tmp_path, build("tiny-llama"), batch_of((8, 0), length=16), "2.8")
    assert written
    assert "it shows the fault (1 of 1 values are not finite)" in note
    tensors = assigned(text)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == dict.fromkeys(
        ("query", "key", "value", "attn_mask"), (1, 1, 1, 1)
    )
    assert not tensors["attn_mask"].any()
    assert "Found under emulation, not measured" in text
    assert f"torch: {metadata.version('torch')}" in text
    imports = {alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names}
    assert imports == {"sys", "torch"}
    # On the plain CPU nothing is wrong, and the script says so.
    monkeypatch.setattr(sys, "argv", ["repro.py", "cpu"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(tmp_path / "repro.py"))
    assert end.value.code == 0


def test_a_wrong_kernel(build, batch_of, tmp_path, here):
    (written, note), text = write(tmp_path, build("tiny-llama", "bfloat16"), batch_of((0, 0), length=9), "2.11", 26)
    assert written
    assert "largest difference" in note
    assert max(max(t.shape) for t in assigned(text).values()) <= 4
    assert "def reference(" in text


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_overflow(build, batch_of, plants, tmp_path, here, dtype):
    model = build("tiny-llama", dtype)
    plants.overflow(model, 1)
    (written, _note), text = write(tmp_path, model, batch_of())
    assert written
    assert "torch.nn.functional.linear(input_, weight_" in text
    assert all(t.numel() <= 4 for t in assigned(text).values())


def test_no_labels(build, batch_of, tmp_path, here):
    batch = batch_of()
    batch["labels"].fill_(-100)
    (written, _note), text = write(tmp_path, build("tiny-gpt2"), batch)
    assert written
    assert assigned(text)["target"].tolist() == [-100]


def test_something_unknown(build, batch_of, plants, tmp_path, here):
    model = build("tiny-qwen2")
    plants.root_of_negative(model, 2)
    (written, _note), text = write(tmp_path, model, batch_of())
    assert written
    assert "torch.sqrt(" in text


def test_a_doubled_mask(build, batch_of, plants, tmp_path, here):
    model = build("tiny-llama")
    plants.doubled_mask(model, 1, torch.float32)
    (written, _note), text = write(tmp_path, model, batch_of(), "2.8")
    assert written
    assert "torch.Tensor.add(" in text


def test_strides_that_matter_are_kept(tmp_path, here):
    """The vector kernel of 2.8 ignores the strides of the query: made contiguous it would be right."""
    from mpsdiag.tracing.origin import Origin

    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 6, 3, 64).transpose(1, 2) for _ in range(3))
    call = TorchCall(F.scaled_dot_product_attention, (query, key.contiguous(), value.contiguous()), {}, None)
    origin = Origin(
        cause="wrong_device",
        layer=0,
        module="m",
        operation="scaled_dot_product_attention",
        summary="wrong",
        evidence={"logits": {}},
        remedy={"text": "-"},
    )
    path = tmp_path / "repro.py"
    written, _note = repro.write_repro(path, origin, call, environment.gather(), grad=False, emulation=Emulation("2.8"))
    assert written
    assert ".permute(" in path.read_text()


def test_bad_weights_are_no_fault_of_an_operation(build, batch_of, plants, tmp_path):
    model = build("tiny-llama")
    plants.bad_weight(model, 1)
    (written, note), text = write(tmp_path, model, batch_of())
    assert (written, text) == (False, "")
    assert "weights are bad" in note


def test_nothing_to_show(build, batch_of, tmp_path):
    (written, note), _ = write(tmp_path, build("tiny-llama"), batch_of())
    assert not written
    assert "nothing to show" in note


def test_a_script_that_does_not_show_it_is_not_handed_over(build, batch_of, tmp_path, monkeypatch):
    monkeypatch.setattr(repro, "_run", lambda text, emulation: None)
    (written, note), text = write(tmp_path, build("tiny-llama"), batch_of(), "2.8")
    assert (written, text) == (False, "")
    assert "does not show the fault" in note


def test_somebody_elses_file_is_not_overwritten(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("print('mine')\n")
    with pytest.raises(BadInput, match="did not write it"):
        repro.check_target(mine)
    mine.write_text(repro.MARK + ': x."""\n')
    repro.check_target(mine)
    with pytest.raises(BadInput, match=r"does not end in \.py"):
        repro.check_target(tmp_path / "x.txt")


def test_the_reduction_finds_the_one_number_that_matters():
    tensor = torch.zeros(5, 7, 3)
    tensor[3, 4, 1] = 42.0
    shows = lambda tensors: bool((tensors[0] > 40).any())  # noqa: E731
    found = smallest((tensor,), shows)
    assert (tuple(found[0].shape), found[0].item()) == ((1, 1, 1), 42.0)
    made = plainest(found, shows)
    assert made[0].expression == "torch.tensor([[[42.0]]], dtype=torch.float32)"


def test_a_single_number_is_written_as_python_can_read_it():
    made = plainest((torch.tensor(7.0),), lambda tensors: bool(tensors[0] > 0))
    assert made[0].expression == "torch.ones((), dtype=torch.float32)"
    assert eval(made[0].expression) == 1.0  # noqa: S307 - our own expression


def test_the_stock_function_keeps_its_name_though_torch_looked_it_up_under_a_fix(monkeypatch):
    monkeypatch.setattr(repro, "resolve_name", lambda func: None)
    lone = SimpleNamespace(call=SimpleNamespace(func=F.scaled_dot_product_attention))
    assert repro.function_name(lone) == "torch.nn.functional.scaled_dot_product_attention"
    assert repro.function_name(SimpleNamespace(call=SimpleNamespace(func=len))) is None
