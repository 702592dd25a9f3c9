"""The recorded runs of the kernels in the macOS wheels of torch, compared with the emulator.

The code of the Metal kernels was executed instruction by instruction on a CPU, not on Apple hardware: `exp`, the order
of sums and the order inside the matrix units are not Apple's. `tests/data/kernel_runs.xz` holds 1,201 runs: a line of
JSON with their parameters, then their outputs, float32 rounded to 18 significant bits. Inputs are made from seeds.

    python benchmarks/kernel_runs.py RUNS.jsonl     # pack the recording

Each run is judged by the same rule: NaN, infinities and rows of zeros in the same places; float32 within 1e-5 of
max|V|, float16 within 3e-3 and bfloat16 within 2e-2, at least 97 % of their values equal bit by bit.
"""

from __future__ import annotations

import base64
import json
import lzma
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpsdiag.emulation.mode import emulate_mps
from mpsdiag.emulation.releases import defects_of

DATA = Path(__file__).parents[1] / "tests" / "data" / "kernel_runs.xz"
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
WITHIN = {"f32": 1e-5, "f16": 3e-3, "bf16": 2e-2}
EQUAL = 0.97
NAN, INF = float("nan"), float("inf")
DROPPED_BITS = 6  # of float32: what is lost is at most 4e-6 of a value
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 2, "pb": 2}]

Recorded = tuple[dict[str, Any], Tensor]


@dataclass(frozen=True)
class Agreement:
    """One run compared with the emulation.

    Attributes:
        patterns: NaN, infinities and rows of zeros are in the same places.
        error: Largest difference of finite values, in units of max|V|.
        equal: Share of the finite values that are equal bit by bit.
        agrees: By the rule above.
    """

    patterns: bool
    error: float
    equal: float
    agrees: bool


def recorded() -> Iterator[Recorded]:
    """Read the parameters of each run and its output `(B, Hq, L, D)`, in the dtype of the run."""
    with lzma.open(DATA) as file:
        for run in json.loads(file.readline()):
            shape, dtype = [run[name] for name in ("B", "Hq", "L", "D")], DTYPES[run["dtype"]]
            raw = bytearray(file.read(int(np.prod(shape)) * dtype.itemsize))
            yield run, torch.frombuffer(raw, dtype=dtype).view(shape)


def compare(run: dict[str, Any], want: Tensor, *, defects: tuple[str, ...] | None = None) -> Agreement:
    """Run the operator under the emulation and compare.

    The kernels were given buffers that lie apart, so SDPA004 is left out. Up to 2.12 the host repeats shared heads.
    """
    query, key, value, mask = inputs(run)
    release = run["release"].rpartition(".")[0]
    if int(release[2:]) < 13:
        key, value = (x.repeat_interleave(run["Hq"] // run["Hkv"], 1) for x in (key, value))
    if defects is None:
        defects = tuple(defect for defect in defects_of(release, run["macos"]) if defect != "SDPA004")
    operator = torch.ops.aten._scaled_dot_product_attention_math_for_mps  # noqa: SLF001 - takes bool masks
    with emulate_mps(release, run["macos"], defects):
        got = operator(query, key, value, mask, 0.0, run["is_causal"], scale=run["scale"])[0]
    return agreement(got, want, value, run["dtype"])


def agreement(got: Tensor, want: Tensor, value: Tensor, dtype: str) -> Agreement:
    """Judge an output by the rule above."""
    finite = want.isfinite()
    special = torch.equal(got.nan_to_num(0, 1, -1)[~finite], want.nan_to_num(0, 1, -1)[~finite])
    zeros = torch.equal((got == 0).all(-1), (want == 0).all(-1))
    patterns = special and zeros and torch.equal(got.isfinite(), finite)
    if not patterns or not bool(finite.any()):
        return Agreement(patterns, 0.0 if patterns else INF, float(patterns), patterns)
    error = float((got - want)[finite].abs().max() / value[value.isfinite()].abs().max())
    equal = float((got == want)[finite].float().mean())
    close = error <= WITHIN[dtype] and (dtype == "f32" or equal >= EQUAL)
    return Agreement(patterns, error, equal, close)


def inputs(run: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Make query, key, value and mask from the run's seed: numbers first, then poison, then the layout in memory."""
    generator, dtype = torch.Generator().manual_seed(run["seed"]), DTYPES[run["dtype"]]
    batch, heads, rows, keys, width = (run[name] for name in ("B", "Hq", "L", "S", "D"))
    of_keys = (batch, run["Hkv"], keys, width)
    query = (torch.randn(batch, heads, rows, width, generator=generator) * run["std"]).to(dtype)
    key = (torch.randn(of_keys, generator=generator) * run["std"]).to(dtype)
    value = torch.randn(of_keys, generator=generator).to(dtype)
    mask = _mask(run, generator)
    query, key = _poison(run["poison"], query, key, value)
    laid_out = [_in_memory(layout, x) for layout, x in zip(run["layout"].split("/"), (query, key, value), strict=True)]
    if mask is not None and run["mask_layout"] == "t":
        mask = mask.mT.contiguous().mT
    return laid_out[0], laid_out[1], laid_out[2], mask


def _mask(run: dict[str, Any], generator: torch.Generator) -> Tensor | None:
    """A mask by its kind and shape: `booldead/b1` is bool `(B, 1, L, S)` with every second row fully masked."""
    kind, _, extent = run["mask"].partition("/")
    if kind == "none":
        return None
    batch, heads, rows, keys = (run[name] for name in ("B", "Hq", "L", "S"))
    shape = {
        "": (batch, heads, rows, keys),
        "4d": (batch, heads, rows, keys),
        "b1": (batch, 1, rows, keys),
        "11": (1, 1, rows, keys),
        "k": (batch, 1, 1, keys),
        "11k": (1, 1, 1, keys),
        "2d": (rows, keys),
    }[extent]
    dtype = DTYPES[run["dtype"]]
    shown = torch.rand(shape, generator=generator) < 0.5
    if kind == "bias":
        return torch.randn(shape, generator=generator).to(dtype)
    if kind == "boolalldead":
        return torch.zeros(shape, dtype=torch.bool)
    if kind == "boolleft":
        shown[:] = torch.arange(keys) >= max(1, keys // 3)
    if kind == "booldead" and shown.shape[-2] > 1:
        shown[..., ::2, :] = False
    if kind.endswith(("dead", "left", "m1e4", "m1e9", "m1e10")):
        shown[..., 0, :] = False
    if kind.startswith("bool"):
        return shown
    lowest = -1e4 if run["dtype"] == "f16" else -1e9
    fill = {"m1e4": -1e4, "m1e9": lowest, "m1e10": -1e4 if run["dtype"] == "f16" else -1e10}
    of_kind = fill.get(kind, torch.finfo(dtype).min if kind.startswith("min") else -INF)
    return torch.zeros(shape, dtype=dtype).masked_fill_(~shown, of_kind)


def _poison(name: str, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Put one NaN or infinity somewhere, in place, or give queries and keys another size."""
    keys, width = key.shape[2:]
    if name == "big":
        return query * 30, key * 30
    if name == "neg20":
        size = (20 / width) ** 0.5 * width**0.25
        return torch.full_like(query, size), torch.full_like(key, -size)
    head = slice(0, max(1, keys // 3))
    places: dict[str, list[tuple[Tensor, Any]]] = {
        "": [],
        "q": [(query, (0, 0))],
        "k0": [(key, (0, 0))],
        "klast": [(key, (keys - 1, 0))],
        "kmid": [(key, (keys // 2, 3))],
        "kall": [(key, ())],
        "khead": [(key, head)],
        "v0": [(value, (0, 0))],
        "vlast": [(value, (keys - 1, 1))],
        "vmid": [(value, (keys // 2, 2))],
        "vhead": [(value, head)],
        "kvhead": [(key, head), (value, head)],
    }
    for tensor, at in places[name[:-3]]:
        tensor[0, 0][at] = NAN if name.endswith("nan") else INF
    return query, key


def _in_memory(layout: str, tensor: Tensor) -> Tensor:
    """The same numbers in another layout."""
    batch, heads, rows, width = tensor.shape
    if layout == "lhd":  # heads and rows swapped
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "perm":
        return tensor.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    if layout == "dstride":
        return tensor.mT.contiguous().mT
    if layout == "slice":  # of a longer cache
        cache = torch.full((batch, heads, rows + 5, width), NAN, dtype=tensor.dtype)
        cache[:, :, 2 : rows + 2] = tensor
        return cache[:, :, 2 : rows + 2]
    if layout == "qkv":  # of one projection to query, key and value
        fused = torch.full((batch, rows, 3, heads, width), NAN, dtype=tensor.dtype)
        fused[:, :, 1] = tensor.transpose(1, 2)
        return fused[:, :, 1].transpose(1, 2)
    return tensor


def pack(recording: Path) -> None:
    """Write the compact form of a recording: one JSON line for each run, with the output in base64."""
    runs = [json.loads(line) for line in recording.read_text(encoding="utf-8").splitlines()]
    outputs = b""
    for run in runs:
        raw = base64.b64decode(run.pop("output"))
        if run["dtype"] == "f32":
            bits = np.frombuffer(raw, "<u4").astype("<u8")
            half = 1 << (DROPPED_BITS - 1)
            rounded = (bits + half) >> DROPPED_BITS << DROPPED_BITS
            raw = np.where(np.isfinite(bits.astype("<u4").view("<f4")), rounded, bits).astype("<u4").tobytes()
        outputs += raw
    head = json.dumps(runs, separators=(",", ":")).encode()
    head += b" " * (-(len(head) + 1) % 4) + b"\n"  # whole words of 4 bytes, which the compression counts on
    DATA.write_bytes(lzma.compress(head + outputs, filters=FILTERS))


if __name__ == "__main__":
    pack(Path(sys.argv[1]))
