"""Kernels of the hub as attention modes, with a package `kernels` of our own, whose kernel computes on the CPU."""

import os
import subprocess
import sys
import textwrap

import pytest

from mpsdiag import BadInput, apply
from mpsdiag.fixes.modes import mode_named
from mpsdiag.inputs.models import build_model
from mpsdiag.words import attention_modes, is_kernel

KERNELS = '''
from types import ModuleType

import torch
from torch.nn.functional import scaled_dot_product_attention


def __getattr__(name):  # classes and decorators that transformers imports
    if name.startswith("__"):
        raise AttributeError(name)
    return (lambda *_: lambda it: it) if name.startswith("use_kernel") else type(name, (), {})


def one(q, k, v, causal=False, softmax_scale=None, **_):
    """(B, L, H, E), as flash attention takes and gives it."""
    groups = q.shape[2] // k.shape[2]
    parts = (x.transpose(1, 2) for x in (q, k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)))
    return scaled_dot_product_attention(*parts, is_causal=causal, scale=softmax_scale).transpose(1, 2)


def packed(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **options):
    ends = cu_seqlens_q.tolist()
    return torch.cat([one(q[None, a:b], k[None, a:b], v[None, a:b], **options)[0] for a, b in zip(ends, ends[1:])])


def get_kernel(repository, **_):
    if repository != "kernels-community/ours":
        raise FileNotFoundError(f"{repository} cannot be reached")
    made = ModuleType("ours")
    made.flash_attn_func, made.flash_attn_varlen_func = one, packed
    return made
'''
SCRIPT = """
import sys

import torch

import mpsdiag
from mpsdiag.cli import main
from mpsdiag.inputs.models import build_model

KERNEL = "kernels-community/ours"
SMALL = ["--model", "tiny-llama", "--attn-implementation", KERNEL, "--max-length", "64"]


def command(*words):
    try:
        main(list(words))
    except SystemExit as end:
        return end.code


if __name__ == "__main__":
    model = build_model("tiny-llama")
    ids, mask = torch.arange(24).reshape(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    before = model(ids, attention_mask=mask).logits
    with mpsdiag.apply(model, KERNEL):
        after = model(ids, attention_mask=mask).logits
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(after[mask.bool()], before[mask.bool()])
    try:
        mpsdiag.apply(model, "kernels-community/away")
    except mpsdiag.BadInput as problem:
        assert "kernels-community/away cannot be reached" in str(problem), problem
    assert command("trace", *SMALL) == 0
    gpt2 = ["--model", "tiny-gpt2", *SMALL[2:]]
    assert command("trace", *gpt2) == 2  # its attention has no Linear layer to take a dtype from
    assert command("trace", *gpt2, "--dtype", "bfloat16") == 0
    few = ["--max-steps", "1", "--eval-max-batches", "1", "--rounds", "0", "--out", sys.argv[1]]
    matrix = ["--attn-implementation", "sdpa", "--padding-side", "left", "--trainer", "standard"]
    code = command("bench", *SMALL, *matrix, *few, "--fail-if", "any bad in all", "--fail-if", f"any ok in {KERNEL}")
    assert code == 1, code  # the second gate: the cell finished
"""


def test_a_kernel_of_the_hub_is_a_mode_like_the_others(tmp_path):
    from transformers.utils import import_utils

    version = getattr(import_utils, "KERNELS_MIN_VERSION", None)
    if version is None:
        pytest.skip("this transformers does not say which kernels it takes")
    (tmp_path / "kernels.py").write_text(KERNELS)
    about = tmp_path / f"kernels-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n")
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "GPT2LMHeadModel cannot run this attention in float32" in done.stderr
    assert "Unexpected" not in done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["sdpa", "✓", "exact"] in lines
    assert "✓" in next(line for line in lines if line[:1] == ["kernels-community/ours"])


def test_without_the_package_it_is_one_sentence():
    if mode_named("a/b").unavailable("cpu", "float32") is None:
        pytest.skip("the package kernels is installed")
    with pytest.raises(BadInput, match=r"hub kernels need the package kernels \(pip install kernels"):
        apply(build_model("tiny-llama"), "kernels-community/metal-flash-sdpa")


@pytest.mark.parametrize("name", ["a/b", "kernels-community/x@v1:f", "kernels-community/metal-flash-sdpa"])
def test_names_of_kernels(name):
    assert is_kernel(name)
    assert attention_modes([name, "eager", "sdpa"]) == ["sdpa", "eager", name]


@pytest.mark.parametrize("name", ["a/b/c", "/b", "a b/c", "a/\x1b", "../x", "../x/y", "a/b:c:d"])
def test_names_of_no_kernel(name):
    assert not is_kernel(name)
    with pytest.raises(BadInput, match="Unknown attention mode"):
        mode_named(name)
