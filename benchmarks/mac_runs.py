"""What owners of Macs ran, as functions to run under the emulation of their release; see `mac_observations.json`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mac_bench import Run, attempt, direct, drawn, finite, off_by, plain, rerun
from torch import Tensor

from mpsdiag.sdpa.float64 import reference_attention


@rerun("pt156707_bool_row", "pt157727_fixed_zero_rows")
def dead_row() -> Run:
    """Grad mode stays on: what counts is that nothing requires a gradient."""
    q, k, v = drawn(0, *[(1, 1, 2, 4)] * 3)
    mask = torch.tensor([[False, False], [True, True]])[None, None]
    row = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0, 0, 0]
    if bool(row.isnan().all()):
        return Run("nan", "row 0 is NaN")
    zeros = not bool(row.any())
    return Run("ok" if zeros else "wrong", "row 0 is zeros" if zeros else "row 0 is neither NaN nor zeros")


def _gpt2(attention: str) -> Tensor:
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=32,
        n_layer=2,
        n_head=2,
        vocab_size=64,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    model = GPT2Model(config).eval()
    ids = torch.randint(1, 64, (2, 10))
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).last_hidden_state


@rerun("thesis_gpt2_sdpa_nan")
def gpt2_sdpa() -> Run:
    """Two texts of 1 and 10 tokens, padded on the left."""
    output = _gpt2("sdpa")
    if finite(output) == "ok":
        return Run("ok", "no NaN")
    first = output.isnan().nonzero()[0].tolist()
    return Run("nan", f"NaN, the first at {first}", {"first NaN": str(first)})


@rerun("thesis_gpt2_eager_ok")
def gpt2_eager() -> Run:
    """The same with eager attention."""
    outcome = finite(_gpt2("eager"))
    return Run(outcome, "no NaN" if outcome == "ok" else "NaN")


@rerun("pt131362_fp16_nomask_ok")
def first_operator_test() -> Run:
    """Both with and without is_causal."""
    q, k, v = (x.half() for x in drawn(1729, (1, 32, 1, 128), (1, 32, 72, 128), (1, 32, 72, 128)))
    worst = max(
        off_by(direct(q, k, v, is_causal=causal), reference_attention(q, k, v, is_causal=causal))
        for causal in (False, True)
    )
    return Run("ok" if worst < 0.01 else "wrong", f"largest error {worst:.4f}", {"error below": worst})


@rerun("dia197_gqa_abort")
def grouped_heads() -> Run:
    """16 query heads on 4 key heads."""
    q, k, v = drawn(0, (1, 16, 8, 128), (1, 4, 8, 128), (1, 4, 8, 128))
    return attempt(lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True))


@rerun("pt147443_5d_abort")
def five_dimensions() -> Run:
    """Windows of a vision model."""
    q = torch.rand(3, 592, 4, 49, 32)
    return attempt(lambda: F.scaled_dot_product_attention(q, q, q))


@rerun("hf36891_t251_3d_ok")
def three_dimensions_transposed() -> Run:
    """Heads first, as a view: not contiguous."""
    q, k, v = (x.transpose(0, 1) for x in drawn(0, *[(16, 16, 80)] * 3))
    mask = torch.ones(1, 16, 16, dtype=torch.bool)
    return attempt(lambda: F.scaled_dot_product_attention(q, k, v, mask))


@rerun("hf36891_t251_3d_contig_fail")
def three_dimensions() -> Run:
    """The same, contiguous."""
    q, k, v = drawn(0, *[(16, 16, 80)] * 3)
    return attempt(lambda: F.scaled_dot_product_attention(q, k, v, torch.ones(1, 16, 16)))


@rerun("pt189631_broadcast_error")
def broadcast() -> Run:
    """A batch that only key and value have."""
    q, k = drawn(0, (1, 1, 64), (2, 1, 1, 64))
    return attempt(lambda: F.scaled_dot_product_attention(q, k, k))


@rerun("pt176767_dv24_shape")
def narrow_value() -> Run:
    """A value narrower than the query."""
    q, k, v = drawn(0, (1, 1, 16, 32), (1, 1, 16, 32), (1, 1, 16, 24))
    width = F.scaled_dot_product_attention(q, k, v).size(-1)
    return Run("ok" if width == 24 else "wrong", f"last dimension {width}", {"last dimension": str(width)})


@rerun("hawking_mla_asym_sdpa_wrong")
def latent_attention() -> Run:
    """The width that reaches the projection after attention, in both dtypes."""
    widths = set()
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (x.to(dtype) for x in drawn(0, (1, 16, 5, 192), (1, 16, 5, 192), (1, 16, 5, 128)))
        with torch.no_grad():
            output = F.scaled_dot_product_attention(q, k, v)
        widths.add(output.transpose(1, 2).reshape(1, 5, -1).size(-1))
    width = ", ".join(map(str, sorted(widths)))
    return Run("ok" if width == "2048" else "wrong", f"width {width}", {"width": width})


def _transposed_queries(length: int) -> Run:
    q, k, v = (x.transpose(1, 2) for x in drawn(0, *[(2, length, 8, 64)] * 3))
    error = off_by(F.scaled_dot_product_attention(q, k, v), plain(q, k, v))
    return Run("ok" if error < 1e-5 else "wrong", f"largest error {error:.2g}")


@rerun("pt163597_L9_ok")
def nine_transposed_queries() -> Run:
    """Too many for the vector kernel."""
    return _transposed_queries(9)


@rerun("pt163597_L8_wrong")
def eight_transposed_queries() -> Run:
    """As many as the vector kernel takes."""
    return _transposed_queries(8)


def _permuted(*, contiguous: bool) -> float:
    tensors = [x.permute(0, 2, 1, 3) for x in drawn(0, *[(84, 3, 3, 64)] * 3)]
    q, k, v = (x.contiguous() for x in tensors) if contiguous else tensors
    return off_by(F.scaled_dot_product_attention(q, k, v), plain(q, k, v))


@rerun("pt181133_permuted_wrong")
def permuted() -> Run:
    """A batch of 84 with heads and tokens swapped."""
    error = _permuted(contiguous=False)
    return Run("wrong" if error > 1e-5 else "ok", f"max abs err = {error:.4g}", {"error": error})


@rerun("pt181133_contiguous_ok")
def permuted_and_copied() -> Run:
    """The same, copied."""
    error = _permuted(contiguous=True)
    return Run("wrong" if error > 1e-5 else "ok", f"max abs err = {error:.4g}", {"error below": error})


@rerun("pt174861_t28_2pass_wrong", "pt174861_t211_ok")
def two_pass() -> Run:
    """Twice the same call on 1024 shared keys."""
    q, k, v = (x.bfloat16() for x in drawn(0, (1, 32, 1, 128), (1, 2, 1024, 128), (1, 2, 1024, 128)))
    first, second = (F.scaled_dot_product_attention(q, k, v, enable_gqa=True) for _ in range(2))
    off = ~((first.double() - reference_attention(q, k, v, enable_gqa=True)).abs() <= 1e-2)
    calls = "identical" if torch.equal(first, second) else "differ"
    count = int(off.sum())
    return Run(
        "wrong" if count else "ok",
        f"{count} values off, two calls {'are identical' if calls == 'identical' else calls}",
        {"values off by more than 0.01": str(count), "two calls": calls},
    )


def _cached(keys: int, mask: Tensor | None) -> Tensor:
    generator = torch.Generator().manual_seed(1234)
    shapes = ((1, 16, 1, 128), (1, 8, keys, 128), (1, 8, keys, 128))
    q, k, v = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)
    cache = torch.zeros(2, 1, 8, 9500, 128, dtype=torch.bfloat16)
    cache[0, :, :, :keys], cache[1, :, :, :keys] = k, v
    k, v = (part[:, :, :keys].repeat_interleave(2, dim=1) for part in cache)
    with torch.no_grad():
        return (F.scaled_dot_product_attention(q, k, v, mask) - reference_attention(q, k, v)).abs().max()


def _cached_run(errors: list[Tensor]) -> Run:
    worst = float(torch.stack(errors).max())
    return Run("ok" if worst < 0.05 else "wrong", f"largest error {worst:.4f}", {"error below": worst})


@rerun("groove_t2110_kv2048")
def decode_from_a_cache() -> Run:
    """Below and above the length at which the two-pass kernel takes over."""
    return _cached_run([_cached(keys, None) for keys in (512, 2048)])


@rerun("groove_t2100_zero_mask_ok")
def decode_with_zero_mask() -> Run:
    """A mask of zeros leads away from the vector kernels."""
    return _cached_run([_cached(2048, torch.zeros(1, 1, 1, 2048, dtype=torch.bfloat16))])


@rerun("pt182285_boolmask_direct_wrong")
def boolean_mask_in_the_kernel() -> Run:
    """A mask of ones, which changes nothing."""
    q, k, v = drawn(0, (1, 1, 8, 64), (1, 1, 512, 64), (1, 1, 512, 64))
    error = off_by(direct(q, k, v, torch.ones(8, 512, dtype=torch.bool)), reference_attention(q, k, v))
    return Run("wrong" if error > 1e-3 else "ok", f"largest error {error:.2g}")


@rerun("pt184400_log2e_wrong")
def additive_mask() -> Run:
    """-3 on every eighth key."""
    q, k, v = drawn(0, *[(1, 2, 64, 64)] * 3)
    mask = torch.zeros(1, 2, 64, 64)
    mask[..., ::8] = -3.0
    error = off_by(F.scaled_dot_product_attention(q, k, v, mask), reference_attention(q, k, v, mask))
    return Run("wrong" if error > 1e-3 else "ok", f"largest error {error:.2g}")


@rerun("pt184126_dropout_ignored")
def dropout() -> Run:
    """Three probabilities, one output."""
    (q,) = drawn(0, (1, 2, 4, 8))
    outputs = [F.scaled_dot_product_attention(q, q, q, dropout_p=p) for p in (0.0, 0.5, 0.9)]
    same = all(torch.equal(outputs[0], other) for other in outputs[1:])
    return Run("wrong" if same else "ok", "all three the same" if same else "they differ")


def _causal(dtype: torch.dtype, *, explicit: bool = False) -> float:
    q, k, v = drawn(0, *[(1, 4, 64, 64)] * 3)
    mask = torch.ones(64, 64, dtype=torch.bool).tril() if explicit else None
    with torch.no_grad():
        output = F.scaled_dot_product_attention(*(x.to(dtype) for x in (q, k, v)), mask, is_causal=not explicit)
        return off_by(output, plain(q, k, v, is_causal=True))


@rerun("pt195910_t2110_bf16", "pt195910_t2121_bf16", "pt195910_t2130_bf16", "pt195910_t2140_bf16")
def causal_leak() -> Run:
    """The thread's own script."""
    error = _causal(torch.bfloat16)
    return Run("leak" if error > 0.1 else "ok", f"max abs err {error:.4g}", {"error": error})


@rerun("pt195910_t2110_fp16_leak")
def causal_leak_pattern() -> Run:
    """Equal scores, and one-hot values that name their key."""
    zeros = torch.zeros(1, 1, 64, 64, dtype=torch.float16)
    seen = F.scaled_dot_product_attention(zeros, zeros, torch.eye(64).half()[None, None], is_causal=True)[0, 0]
    last = [int(row.nonzero().max()) for row in seen[:9]]
    outcome = "ok" if last == list(range(9)) else "leak"
    return Run(outcome, f"last keys {last}", {"last key seen by rows 0 to 8": str(last)})


@rerun("pt195910_t2110_explicit_mask_ok")
def explicit_mask() -> Run:
    """The same inputs with a mask in place of is_causal."""
    bf16, fp16 = (_causal(dtype, explicit=True) for dtype in (torch.bfloat16, torch.float16))
    outcome = "ok" if bf16 < 0.1 else "leak"
    return Run(outcome, f"max abs err {bf16:.4f} (bf16), {fp16:.4f} (fp16)", {"bf16 error": bf16, "fp16 error": fp16})


def _relative(lengths: tuple[int, ...], heads: int) -> Run:
    """Relative errors of the last length, as the thread's script defines them: Frobenius norms."""
    torch.manual_seed(0)
    for length in lengths:
        q, k, v = torch.randn(1, heads, length, 128), *(torch.randn(1, heads // 2, length, 128) for _ in "kv")
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    expected = plain(q, k, v, is_causal=True)
    half = tuple(x.bfloat16() for x in (q, k, v))
    tril = torch.ones(length, length, dtype=torch.bool).tril()
    with torch.no_grad():
        outputs = {
            "relative error bf16": F.scaled_dot_product_attention(*half, is_causal=True),
            "relative error bf16, explicit mask": F.scaled_dot_product_attention(*half, attn_mask=tril),
            "relative error f32": F.scaled_dot_product_attention(q, k, v, is_causal=True),
        }
    errors = {name: float((x.float() - expected).norm() / expected.norm()) for name, x in outputs.items()}
    outcome = "leak" if errors["relative error bf16"] > 0.1 else "ok"
    return Run(outcome, "relative error " + ", ".join(f"{error:.3f}" for error in errors.values()), errors)


@rerun("yue176_t2100_L17_wrong", "yue176_t2140_L17_ok")
def yue_seventeen() -> Run:
    """The second length of the script's list."""
    return _relative((16, 17), 16)


@rerun("yue176_t2140_L3113_ok")
def yue_long() -> Run:
    """The longest length, on 2 heads."""
    return _relative((3113,), 2)


@rerun("pt165961_fp16_256_ok")
def loud_scores() -> Run:
    """Products of 256 x 256 are far beyond float16."""
    q = torch.full((1, 2, 16, 64), 256.0, dtype=torch.float16)
    output = F.scaled_dot_product_attention(q, q, q)
    return Run(finite(output), "no NaN" if finite(output) == "ok" else "NaN")
