"""Time of the emulator divided by time of composite math attention on the same CPU and shapes; goal: at most 3.

Every kernel generation is timed against `scaled_dot_product_attention` with the math backend forced, in
rounds that alternate between the two, so that drift hits both alike. Times are processor time. Run:

    python benchmarks/emulator.py [--json] [--rounds N]
    python benchmarks/emulator.py --before TREE [--rounds N]

Exit code 1 if a ratio is above the limit. With --before the emulator of another checkout is measured in processes that
take turns with this one's; the exit code is 1 if the geometric mean of the ratios has risen by more than 3 %.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from mpsdiag.emulation.mode import emulate_mps

LIMIT = 3.0


@dataclass(frozen=True)
class Case:
    """One generation: a release and macOS that use it, and the shape of the call."""

    generation: str
    release: str
    macos: int
    shape: tuple[int, int, int, int, int]  # batch, heads, queries, keys, head dimension
    mask: str = "float"
    grad: bool = False


CASES = (
    Case("G0", "2.4", 15, (4, 8, 256, 256, 64)),
    Case("G0'", "2.7", 15, (4, 8, 256, 256, 64), grad=True),
    Case("G1", "2.8", 15, (4, 8, 256, 256, 64)),
    Case("G1 causal", "2.8", 15, (4, 8, 256, 256, 64), "causal"),
    Case("G1 small", "2.8", 15, (8, 4, 64, 64, 16)),
    Case("G2", "2.9", 15, (4, 8, 256, 256, 64)),
    Case("G3", "2.12", 15, (4, 8, 256, 256, 64)),
    Case("G3 long", "2.12", 15, (1, 8, 1024, 1024, 64)),
    Case("G4", "2.13", 15, (4, 32, 4, 512, 64)),
    Case("G4 one query", "2.13", 15, (1, 32, 1, 512, 128)),
    Case("G5", "2.13", 15, (1, 32, 1, 4096, 128)),
    Case("G6", "2.13", 15, (4, 8, 256, 256, 64)),
    Case("G6 causal", "2.13", 15, (4, 8, 256, 256, 64), "causal"),
    Case("G6 long", "2.13", 15, (1, 8, 1024, 1024, 64)),
    Case("G7", "2.14", 26, (4, 8, 256, 256, 64)),
)


def seconds(run: Callable[[], object]) -> float:
    """Processor time of one run."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def measure(case: Case, dtype: torch.dtype, rounds: int) -> dict[str, object]:
    """Medians of both, in milliseconds, and their ratio."""
    batch, heads, queries, keys, width = case.shape
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(batch, heads, n, width, generator=generator).to(dtype).requires_grad_(case.grad)
        for n in (queries, keys, keys)
    )
    mask: Tensor | None = None
    if case.mask == "float":
        hidden = torch.rand(batch, 1, queries, keys, generator=generator) < 0.3
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
    causal = case.mask == "causal"

    def composite() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return scaled_dot_product_attention(q, k, v, mask, is_causal=causal)

    mode = emulate_mps(case.release, case.macos)

    def emulated() -> Tensor:
        with mode:
            return scaled_dot_product_attention(q, k, v, mask, is_causal=causal)

    with torch.set_grad_enabled(case.grad):
        for run in (composite, emulated):
            run()
        pairs = [(seconds(composite), seconds(emulated)) for _ in range(rounds)]
    plain, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {
        "generation": case.generation,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": case.shape,
        "composite_ms": round(plain * 1e3, 3),
        "emulated_ms": round(ours * 1e3, 3),
        "ratio": round(ours / plain, 2),
    }


def beside(before: Path, rounds: int, turns: int = 2) -> int:
    """Measure two trees in turns, each in its own process, and print the medians of their ratios."""
    trees = {"before": before.resolve(), "now": Path(__file__).resolve().parents[1]}
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for name, tree in list(trees.items()) * turns:
        command = [sys.executable, "-P", __file__, "--json", "--rounds", str(rounds)]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tree)}, stdout=subprocess.PIPE, check=False)
        for row in json.loads(done.stdout)["rows"]:
            kind = found.setdefault((row["generation"], row["dtype"]), {})
            kind.setdefault(name, []).append(row["ratio"])
    medians = {kind: {name: statistics.median(both[name]) for name in trees} for kind, both in found.items()}
    for (generation, dtype), both in medians.items():
        print(f"{generation:14}{dtype:10}{both['before']:>7.2f}{both['now']:>7.2f}")
    means = {name: math.exp(statistics.fmean(math.log(both[name]) for both in medians.values())) for name in trees}
    print(f"geometric mean of emulated / composite: {means['before']:.3f} before, {means['now']:.3f} now")
    return int(means["now"] > 1.03 * means["before"])


def main() -> int:
    """Measure every case in three dtypes and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--before", type=Path, help="Another checkout, to be measured in turns with this one.")
    options = parser.parse_args()
    if options.before is not None:
        return beside(options.before, options.rounds)
    torch.set_num_threads(1)
    # The mode's overhead and a mask that is the same in all calls are part of what is timed.
    rows = [
        measure(case, dtype, options.rounds)
        for case in CASES
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        if not (case.generation == "G7" and dtype == torch.float32)
    ]
    worst = max(float(str(row["ratio"])) for row in rows)
    if options.json:
        print(json.dumps({"limit": LIMIT, "worst": worst, "rows": rows}))
    else:
        print(f"{'generation':14}{'dtype':10}{'shape':26}{'composite':>11}{'emulated':>11}{'ratio':>7}")
        for row in rows:
            print(
                f"{row['generation']:14}{row['dtype']:10}{row['shape']!s:26}"
                f"{row['composite_ms']:>8} ms{row['emulated_ms']:>8} ms{row['ratio']:>7}"
            )
        print(f"worst ratio {worst}, limit {LIMIT}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
