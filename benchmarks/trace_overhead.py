"""What tracing costs when nothing is found, in rotated rounds: traced and watched against bare.

Bare: `model(**batch)` without gradients, and its loss read, batch by batch. Traced: `trace_batches` on the same
batches, without the comparison with the CPU. Watched: bare under `mpsdiag.watch`, which is what `mpsdiag run --trace`
does; `--train` watches training steps with AdamW instead. Run it on a quiet machine:

    OMP_NUM_THREADS=1 python benchmarks/trace_overhead.py
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

import mpsdiag
from mpsdiag import device as devices
from mpsdiag.tracing.cases.traced_case import TraceRequest, load_case
from mpsdiag.tracing.passes.forward import trace_batches
from mpsdiag.tracing.passes.model_inputs import prepare_batch
from mpsdiag.words import BUILTIN_DECODERS

GOALS = {"larger": 1.03, "12 layers": 1.02}
"""The largest ratio of watched to bare; 1.10 for the tiny models."""
GOAL = 1.10


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


def trained(model: Any, batches: list[dict[str, Any]]) -> list[float]:
    """Training steps; the learning rate is 0, so that all rounds do the same."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    losses = []
    for batch in batches:
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def seconds(
    work: Callable[..., Any], model: Any, batches: list[dict[str, Any]], device: str, *, watched: bool
) -> tuple[float, float]:
    """One evaluation of all batches, wall and processor seconds; to begin to watch, once a process, is not timed."""
    with mpsdiag.watch() if watched else nullcontext():
        work(model, batches[:1])
        return _timed(work, model, batches, device)


def _timed(work: Callable[..., Any], model: Any, batches: list[dict[str, Any]], device: str) -> tuple[float, float]:
    devices.synchronize(device)
    start, busy = time.perf_counter(), time.process_time()
    work(model, batches)
    devices.synchronize(device)
    return time.perf_counter() - start, time.process_time() - busy


def llama(layers: int, hidden: int, device: str) -> tuple[Any, list[dict[str, Any]]]:
    """A model where what hooks cost fades beside the work."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().to(device)
    ids = torch.randint(3, 2000, (4, 128))
    mask = torch.ones_like(ids)
    mask[0, :40] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    return model, [prepare_batch(model, batch)] * 4


SIZES = {"larger": (6, 256), "12 layers": (12, 768)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--train", action="store_true", help="training steps instead of evaluations")
    parser.add_argument("--models", nargs="*", default=[*BUILTIN_DECODERS, *SIZES])
    arguments = parser.parse_args()
    device = devices.resolve(arguments.device)
    works: dict[str, Callable[..., list[float]]] = {"bare": bare, "traced": traced, "watched": bare}
    if arguments.train:
        works = {"bare": trained, "watched": trained}
    print(f"torch {torch.__version__}, {device}, {arguments.rounds} rounds, 4 batches of 4 x 128 tokens a round")
    print(f"{'model':14} {'work':8} {'bare ms':>9} {'ms':>9} {'ratio':>7} {'cpu ratio':>10} {'goal':>5}   (medians)")
    for name in arguments.models:
        if name in SIZES:
            model, batches = llama(*SIZES[name], device)
        else:
            with load_case(TraceRequest(model=name, device=device), lambda _: None) as case:
                model, batches = case.model, case.batches
        first = works["bare"](model, batches)
        assert all(map(math.isfinite, first))
        assert all(works[key](model, batches) == first for key in works)
        taken: dict[str, list[tuple[float, float]]] = {key: [] for key in works}
        for turn in range(arguments.rounds):
            for key in list(works) if turn % 2 else reversed(works):
                taken[key].append(seconds(works[key], model, batches, device, watched=key == "watched"))
        for key in list(works)[1:]:
            ratios = [[t[clock] / b[clock] for t, b in zip(taken[key], taken["bare"], strict=True)] for clock in (0, 1)]
            milliseconds = [statistics.median(wall for wall, _ in taken[one]) * 1e3 for one in ("bare", key)]
            wall, busy = map(statistics.median, ratios)
            print(
                f"{name:14} {key:8} {milliseconds[0]:9.1f} {milliseconds[1]:9.1f} {wall:7.3f} {busy:10.3f} "
                f"{GOALS.get(name, GOAL):5.2f}"
            )


if __name__ == "__main__":
    main()
