"""What the invariance section costs: as ratios to one padded evaluation, in one run, in rotated order.

Both look at the same sequences: the evaluation is the Trainer's own (`trainer.evaluate`), of these sequences in one
padded batch; the section compares them alone and in every arrangement, its float64 reference and generation included.
Run: python benchmarks/invariance_cost.py [--rounds N] [--model NAME]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from mpsdiag import padding_invariance
from mpsdiag.scenario.preparation import prepare
from mpsdiag.scenario.scenario import Scenario


def seconds(work: Callable[[], object]) -> float:
    """How long a piece of work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Time both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", default="tiny-llama")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with prepare(Scenario(model=options.model, max_length=128)) as prepared:
        batch = prepared.eval_batches[0]
        rows = prepared.trainer.eval_dataset
        works: dict[str, Callable[[], object]] = {
            "one padded evaluation": lambda: prepared.trainer.evaluate(rows),
            "the section": lambda: padding_invariance(prepared.model, batch, causes=False, sequences=2),
            "the section without generation": lambda: padding_invariance(
                prepared.model, batch, causes=False, sequences=2, generates=False
            ),
            "its forwards alone: one padded batch": lambda: prepared.eval_step(batch),
        }
        taken: dict[str, list[float]] = {name: [] for name in works}
        for turn in range(options.rounds + 1):
            names = list(works)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                lasted = seconds(works[name])
                if turn:  # the first round warms up
                    taken[name].append(lasted)
    base = statistics.median(taken["one padded evaluation"])
    for name, times in taken.items():
        median = statistics.median(times)
        print(f"{name:40} {median * 1000:8.1f} ms   {median / base:5.2f} evaluations (min {min(times) * 1000:.1f} ms)")
    print("goal: the section at most 2.5 evaluations")


if __name__ == "__main__":
    main()
