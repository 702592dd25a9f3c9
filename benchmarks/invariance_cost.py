"""The cost of the invariance section, as ratios to padded evaluations, within one run, in rotated order.

The section looks at two of the sequences that `check` evaluates, alone and in every arrangement, its float64 reference
and generation included. It is set beside two evaluations by the Trainer (`trainer.evaluate`): of all 16 sequences,
which is what a user waits for anyway, and of the same two sequences in one padded batch.
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
        lengths = sorted(range(len(batch["input_ids"])), key=lambda row: int(batch["attention_mask"][row].sum()))
        same = [rows[lengths[0]], rows[lengths[-1]]]
        works: dict[str, Callable[[], object]] = {
            "one padded evaluation": lambda: prepared.trainer.evaluate(rows),
            "one padded evaluation of the same two": lambda: prepared.trainer.evaluate(same),
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
    every, two = (statistics.median(taken[name]) for name in list(works)[:2])
    print(f"{'':40} {'median':>11} {'min':>11} {'of all':>8} {'of two':>8}")
    for name, times in taken.items():
        median = statistics.median(times)
        print(
            f"{name:40} {median * 1000:8.1f} ms {min(times) * 1000:8.1f} ms {median / every:8.2f} {median / two:8.2f}"
        )
    print("goal: the section at most 2.5 evaluations")


if __name__ == "__main__":
    main()
