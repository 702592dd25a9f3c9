"""What tracing an evaluation costs when nothing is found: traced against bare, in rotated rounds.

Bare: `model(**batch)` without gradients, and its loss read, batch by batch. Traced: `trace_batches` on the same
batches, without the comparison with the CPU. Run it on a quiet machine:

    OMP_NUM_THREADS=1 python benchmarks/trace_overhead.py
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from mpsdiag import device as devices
from mpsdiag.tracing.cases.traced_case import TraceRequest, load_case
from mpsdiag.tracing.passes.evaluation import trace_batches
from mpsdiag.tracing.passes.model_inputs import prepare_batch
from mpsdiag.words import BUILTIN_DECODERS

GOAL = 1.25


def bare(model: Any, batches: list[dict[str, Any]]) -> list[float]:
    """The losses, read one by one."""
    model.eval()
    with torch.no_grad():
        return [float(model(**batch).loss) for batch in batches]


def traced(model: Any, batches: list[dict[str, Any]]) -> list[float]:
    """The same losses, traced."""
    found = trace_batches(model, batches, compare=False)
    assert found.origin is None
    return found.losses


def seconds(
    work: Callable[..., Any], model: Any, batches: list[dict[str, Any]], device: str
) -> tuple[float, float]:
    """One evaluation of all batches: wall and processor seconds."""
    devices.synchronize(device)
    start, busy = time.perf_counter(), time.process_time()
    work(model, batches)
    devices.synchronize(device)
    return time.perf_counter() - start, time.process_time() - busy


def larger(device: str) -> tuple[Any, list[dict[str, Any]]]:
    """A model of 6 layers and 256 channels: what hooks cost fades beside the work."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().to(device)
    ids = torch.randint(3, 2000, (4, 128))
    mask = torch.ones_like(ids)
    mask[0, :40] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    return model, [prepare_batch(model, batch)] * 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = devices.resolve(arguments.device)
    print(
        f"torch {torch.__version__}, {device}, {arguments.rounds} rounds, 4 batches of 4 x 128 tokens a round"
    )
    print(
        f"{'model':14} {'bare ms':>9} {'traced ms':>10} {'ratio':>7} {'cpu ratio':>10}   (medians of rounds)"
    )
    worst = 0.0
    for name in (*BUILTIN_DECODERS, "larger"):
        if name == "larger":
            model, batches = larger(device)
        else:
            with load_case(TraceRequest(model=name, device=device), lambda _: None) as case:
                model, batches = case.model, case.batches
        works = {"bare": bare, "traced": traced}
        assert all(map(math.isfinite, bare(model, batches)))
        assert bare(model, batches) == traced(model, batches)
        taken: dict[str, list[tuple[float, float]]] = {"bare": [], "traced": []}
        for turn in range(arguments.rounds):
            for key in ("bare", "traced") if turn % 2 else ("traced", "bare"):
                taken[key].append(seconds(works[key], model, batches, device))
        milliseconds = {
            key: statistics.median(wall for wall, _ in times) * 1e3 for key, times in taken.items()
        }
        pairs = list(zip(taken["traced"], taken["bare"], strict=True))
        ratio, busy = (statistics.median(t[clock] / b[clock] for t, b in pairs) for clock in (0, 1))
        worst = max(worst, ratio)
        print(
            f"{name:14} {milliseconds['bare']:9.1f} {milliseconds['traced']:10.1f} {ratio:7.3f} {busy:10.3f}"
        )
    print(f"worst ratio {worst:.3f} (goal {GOAL})")


if __name__ == "__main__":
    main()
