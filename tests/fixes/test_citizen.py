"""Code that has nothing to do with fully masked rows works with a mode in place as it does without."""

from __future__ import annotations

import gc
import importlib
import itertools
import logging
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mpsdiag

STOCK = F.scaled_dot_product_attention
MODES = ["sdpa", "safe_sdpa", "unmask_sdpa", "min_mask_sdpa", "eager"]
REPAIRING = ["safe_sdpa", "unmask_sdpa", "min_mask_sdpa"]


@pytest.fixture(autouse=True)
def _nothing_stays():
    yield
    left, F.scaled_dot_product_attention = F.scaled_dot_product_attention, STOCK
    assert left is STOCK


def _qkv(rows=4, keys=4):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, 2, n, 8, generator=generator) for n in (rows, keys, keys))


MASK = torch.ones(4, 4, dtype=torch.bool).tril(-1)


@pytest.mark.filterwarnings("ignore:`torch.jit")
class TestTorchScript:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize(
        "made",
        [
            lambda: nn.MultiheadAttention(8, 2, batch_first=True),
            lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        ],
    )
    def test_torchs_own_modules_are_scripted(self, mode, made):
        torch.manual_seed(0)
        module = made().eval()
        x = torch.randn(2, 4, 8)
        inputs = (x, x, x) if isinstance(module, nn.MultiheadAttention) else (x,)
        want = torch.jit.script(module)(*inputs)
        with mpsdiag.install(mode):
            scripted = torch.jit.script(module)
            got = scripted(*inputs)
        # TorchScript may choose another kernel the second time it runs: the same code gives the same numbers
        for found, expected in zip(*([r] if isinstance(r, torch.Tensor) else r for r in (got, want)), strict=True):
            assert torch.equal(found, expected)
        assert "mpsdiag" not in str(scripted.graph)

    def test_a_function_is_scripted_to_the_operator(self):
        def attend(q: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(q, q, q, attn_mask=mask)

        with mpsdiag.install("safe_sdpa"):
            scripted = torch.jit.script(attend)
        assert "aten::scaled_dot_product_attention" in str(scripted.graph)
        q = _qkv()[0]
        assert torch.equal(scripted(q, MASK), STOCK(q, q, q, MASK))

    def test_the_compilers_table_loses_the_layer_with_the_layer(self):
        from torch.jit._builtins import _get_builtin_table

        with mpsdiag.install("safe_sdpa"):
            layer = id(F.scaled_dot_product_attention)
            assert _get_builtin_table()[layer] == "aten::scaled_dot_product_attention"
        gc.collect()
        assert layer not in _get_builtin_table()

    @pytest.mark.needs(transformers="5.1")  # up to 4.57 BERT looks no attention up by name
    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # jit reads all properties of a model
    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    @pytest.mark.parametrize("place", ["install", "apply"])
    def test_a_model_is_traced_with_gradients_on(self, place, tmp_path):
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
        model = BertModel(BertConfig(vocab_size=50, **shape), add_pooling_layer=False).eval()
        model.config.return_dict = False
        inputs = torch.randint(0, 50, (2, 6)), torch.ones(2, 6, dtype=torch.long).tril(3)
        want = model(*inputs)[0]
        handle = mpsdiag.install("safe_sdpa") if place == "install" else mpsdiag.apply(model, "safe_sdpa")
        with handle:  # the check of the trace raises where a second trace differs from the first
            traced = torch.jit.trace(model, inputs, strict=False)
        assert torch.equal(traced(*inputs)[0], want)
        torch.jit.save(traced, tmp_path / "traced.pt")
        assert b"mpsdiag" not in (tmp_path / "traced.pt").read_bytes()

    def test_what_is_traced_keeps_the_mode(self):
        q = _qkv()[0]
        with mpsdiag.install("safe_sdpa"):
            traced = torch.jit.trace(lambda q, mask: F.scaled_dot_product_attention(q, q, q, mask), (q, MASK))
        with mpsdiag.emulate_mps("2.8"):
            assert "any" in str(traced.graph)
        assert torch.equal(traced(q, MASK), STOCK(q, q, q, MASK))


class _Attends(nn.Module):
    def forward(self, q, k, v, mask):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask) + 1


@pytest.mark.parametrize("mode", MODES)
def test_fx_makes_the_same_graph(mode):
    want = torch.fx.symbolic_trace(_Attends())
    with mpsdiag.install(mode):
        got = torch.fx.symbolic_trace(_Attends())
    assert got.code == want.code
    targets = [[node.target for node in graph.graph.nodes] for graph in (got, want)]
    assert targets[0] == targets[1]
    assert STOCK in targets[0]


@pytest.mark.parametrize("mode", ["safe_sdpa", "unmask_sdpa"])
def test_export_takes_the_mode_along(mode):
    q, k, v = _qkv()
    with mpsdiag.install(mode):
        want = F.scaled_dot_product_attention(q, k, v, MASK) + 1
        for strict in (False, True):
            exported = torch.export.export(_Attends(), (q, k, v, MASK), strict=strict)
            with mpsdiag.install("sdpa"):
                assert torch.equal(exported.module()(q, k, v, MASK), want)


def test_a_model_is_saved_at_its_own_size(build, logits, tmp_path):
    model, inputs = build("llama")
    torch.save(model, tmp_path / "before.pt")
    with mpsdiag.install("safe_sdpa"), mpsdiag.apply(model, "safe_sdpa"):
        logits(model, inputs)
    torch.save(model, tmp_path / "after.pt")
    before, after = (tmp_path / f"{name}.pt" for name in ("before", "after"))
    assert abs(after.stat().st_size - before.stat().st_size) < 2000
    assert b"mpsdiag" not in after.read_bytes()


@pytest.mark.parametrize("way", ["install", "apply"])
@pytest.mark.parametrize("edit", ["in place", "data", "numpy"])
def test_a_mask_that_is_edited_between_two_layers(build, logits, way, edit):
    model, inputs = build("llama")

    def change(module, args, kwargs):
        mask = kwargs["attention_mask"]
        if edit == "in place":
            mask[..., 4, :] = False
        elif edit == "data":
            mask.data[..., 4, :] = False
        else:
            mask.numpy()[..., 4, :] = False

    hook = model.model.layers[1].register_forward_pre_hook(change, with_kwargs=True)
    try:
        want = logits(model, inputs)
        with mpsdiag.install("safe_sdpa") if way == "install" else mpsdiag.apply(model, "safe_sdpa"):
            assert torch.equal(logits(model, inputs), want)
            with mpsdiag.emulate_mps("2.8"):
                assert logits(model, inputs).isfinite().all()
    finally:
        hook.remove()


# Functions of others under the name: each gets its arguments as they came.


def _by_keyword(query, key, value, *, attn_mask=None, dropout_p=0.0):
    return STOCK(query, key, value, attn_mask, dropout_p)


def _other_fourth(query, key, value, dropout_p=0.0, attn_mask=None):
    assert isinstance(dropout_p, float)
    return STOCK(query, key, value, attn_mask, dropout_p)


def _own_names(q, k, v, lengths=None, attn_mask=None):
    assert lengths is None or lengths.dtype == torch.float32
    return STOCK(q, k, v, attn_mask)


def _open_ended(*args, **options):
    return STOCK(*args, **options)


@pytest.mark.parametrize("mode", REPAIRING)
@pytest.mark.parametrize(
    ("theirs", "call"),
    [
        (_by_keyword, lambda f, q, k, v, mask: f(q, k, v, attn_mask=mask)),
        (_by_keyword, lambda f, q, k, v, mask: f(query=q, key=k, value=v, attn_mask=mask, dropout_p=0.0)),
        (_by_keyword, lambda f, q, k, v, mask: f(q, k, v)),
        (_other_fourth, lambda f, q, k, v, mask: f(q, k, v, 0.0, mask)),
        (_other_fourth, lambda f, q, k, v, mask: f(q, k, v, 0.0)),
        (_other_fourth, lambda f, q, k, v, mask: f(q, k, v, attn_mask=mask)),
        (_own_names, lambda f, q, k, v, mask: f(q, k, v, torch.ones(4), mask)),
        (_own_names, lambda f, q, k, v, mask: f(q=q, k=k, v=v, attn_mask=mask)),
        (_open_ended, lambda f, q, k, v, mask: f(q, k, v, mask)),
        (_open_ended, lambda f, q, k, v, mask: f(q, k, value=v, attn_mask=mask, is_causal=False)),
        (_open_ended, lambda f, q, k, v, mask: f(q, k, v, None, 0.0, True)),
    ],
)
def test_drop_ins_get_their_arguments_as_they_came(mode, theirs, call):
    q, k, v = _qkv()
    want = call(theirs, q, k, v, MASK)
    masked = not torch.equal(want, call(theirs, q, k, v, torch.ones_like(MASK)))
    F.scaled_dot_product_attention = theirs
    with mpsdiag.install(mode):
        got = call(F.scaled_dot_product_attention, q, k, v, MASK)
    F.scaled_dot_product_attention = STOCK
    assert torch.equal(got[:, :, 1:], want[:, :, 1:])
    assert torch.equal(got[:, :, 0], want[:, :, 0]) == (mode == "safe_sdpa" or not masked)


def test_an_entry_that_takes_the_mask_by_keyword_only(build, logits):
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def theirs(module, query, key, value, attention_mask, **options):
        return entry(module, query, key, value, attention_mask=attention_mask, **options)

    def entry(module, query, key, value, *, attention_mask=None, **options):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)

    model, inputs = build("llama")
    want = logits(model, inputs)
    AttentionInterface.register("sdpa", theirs)
    try:
        with mpsdiag.install("safe_sdpa"), mpsdiag.apply(model, "safe_sdpa"):
            assert torch.equal(logits(model, inputs), want)
    finally:
        AttentionInterface.register("sdpa", sdpa_attention_forward)


def test_a_result_that_belongs_to_somebody_else_is_not_written():
    q, k, v = _qkv()
    kept = torch.randn(1, 2, 4, 8)
    before = kept.clone()
    F.scaled_dot_product_attention = lambda *args, **options: kept
    with mpsdiag.install("safe_sdpa"), torch.no_grad():
        got = F.scaled_dot_product_attention(q, k, v, MASK)
    F.scaled_dot_product_attention = STOCK
    assert not got[:, :, 0].any()
    assert torch.equal(kept, before)


@pytest.mark.parametrize("order", list(itertools.permutations(["first", "theirs", "second"])))
def test_installs_and_a_wrapper_come_off_in_any_order(order):
    q, k, v = _qkv()
    want = STOCK(q, k, v, MASK)
    first = mpsdiag.install("unmask_sdpa")
    under = F.scaled_dot_product_attention

    def wrapper(*args, **options):
        return under(*args, **options)

    F.scaled_dot_product_attention = wrapper
    second = mpsdiag.install("safe_sdpa")
    left = {"first", "second"}
    for name in order:
        if name == "theirs":
            if F.scaled_dot_product_attention is wrapper:
                F.scaled_dot_product_attention = under
        else:
            {"first": first, "second": second}[name].remove()
            left.discard(name)
        got = F.scaled_dot_product_attention(q, k, v, MASK)
        assert torch.equal(got, want) == (left != {"first"})
    if F.scaled_dot_product_attention is wrapper:  # the wrapper's owner could not restore what it had found
        F.scaled_dot_product_attention = under
    assert torch.equal(F.scaled_dot_product_attention(q, k, v, MASK), want)
    F.scaled_dot_product_attention = STOCK


# Names that were bound before.


def test_names_bound_before_are_reported(caplog, monkeypatch):
    library = types.ModuleType("a_library")
    library.attend = STOCK
    monkeypatch.setitem(sys.modules, "a_library", library)
    with caplog.at_level(logging.WARNING, "mpsdiag.fixes.process"), mpsdiag.install("safe_sdpa") as handle:
        assert "a_library.attend" in handle.unreached
        assert library.attend is STOCK
    assert "safe_sdpa does not reach" in caplog.text
    assert "mpsdiag run --fix safe_sdpa SCRIPT" in caplog.text
    assert not any(name.startswith("torch.") for name in handle.unreached)


def test_names_bound_after_are_reached(monkeypatch, tmp_path):
    source = "from torch.nn.functional import scaled_dot_product_attention as attend\n"
    (tmp_path / "a_late_library.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with mpsdiag.install("safe_sdpa") as handle:
        library = importlib.import_module("a_late_library")
        monkeypatch.delitem(sys.modules, "a_late_library")
        assert library.attend is F.scaled_dot_product_attention
        assert not any(name.startswith("a_late_library") for name in handle.unreached)
    with mpsdiag.install("sdpa") as stock:
        assert stock.unreached == ()
