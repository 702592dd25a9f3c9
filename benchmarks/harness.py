"""The overhead of the matrix over the work itself, as ratios within one run.

1. Isolation: an empty cell in its own process, from a fork server with torch and transformers, against a fresh
   interpreter that imports them. Bound: 0.1 s a cell on Linux.
2. Harness: the timed evaluation steps of a timing leg, against a bare loop over the same trainer, model and batch.
   Bound: 2 %.
3. Cluster (with --cluster): verdicts of real models on two dask workers with one thread each, against one worker.
   Bound: 1.8 x, which takes two cores that nothing else uses.

Usage: python benchmarks/harness.py [--cluster]. Ends with 1 if a bound is broken.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mpsdiag.benching.journal.record import Job
from mpsdiag.benching.run.launch import Isolation
from mpsdiag.scenario.scenario import Scenario

CELLS = 20
STEPS = 40
PAIRS = 8
SEEDS = 4


def isolation(folder: Path) -> float:
    """Seconds that a separate process costs an empty cell; printed beside those of a fresh interpreter."""
    apart = Isolation()
    apart.warm_up(folder / "start.log")
    job = Job(
        key="empty", cell=Scenario(), function="mpsdiag.benching.run.in_child:nothing", log=str(folder / "cell.log")
    )
    cost = statistics.median(apart.run(job).seconds for _ in range(CELLS))
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import mpsdiag.benching.run.preload"], check=True)
    fresh = time.perf_counter() - begin
    print(f"isolation: {cost * 1000:.0f} ms a cell (bound 100); a fresh interpreter takes {fresh:.1f} s")
    return cost


def overhead() -> float:
    """How much longer the timed steps of a cell take than bare steps; the two take turns, so that drift cancels."""
    from mpsdiag.benching.run.cell import timing
    from mpsdiag.scenario.preparation import prepare

    cell = Scenario(sequence_length=256, batch_size=8, train_steps=0, warmup=3, repeats=STEPS)
    ratios = []
    for _ in range(PAIRS):
        with prepare(cell) as prepared:
            batch = max(prepared.eval_batches, key=lambda one: int(one["attention_mask"].sum()))
            for _ in range(3):
                prepared.eval_step(batch)
            bare = []
            for _ in range(STEPS):
                begin = time.perf_counter()
                prepared.trainer.prediction_step(prepared.model, batch, prediction_loss_only=True)
                bare.append(time.perf_counter() - begin)
        answer = timing(cell)
        assert answer.timing is not None
        # The least of many: what the work takes when nothing else is in the way, on either side.
        ratios.append(min(answer.timing.eval_step) / min(bare))
    ratio = statistics.median(ratios)
    print(f"harness: an evaluation step takes {ratio:.3f} x the bare one (bound 1.02), of {PAIRS} pairs")
    return ratio


def cluster() -> float:
    """The speed-up of two workers over one, for the verdicts of real cells."""
    from distributed import LocalCluster

    from mpsdiag.benching.cluster.cluster import ClusterExecutor
    from mpsdiag.benching.cluster.fleet import connect
    from mpsdiag.benching.run.interrupt import Stop

    cells = [
        Scenario(model=model, attention=attention, emulate="2.8", emulate_macos=15, threads=1, seed=seed)
        for seed in range(SEEDS)
        for model in ("tiny-gpt2", "tiny-llama", "tiny-mistral")
        for attention in ("sdpa", "safe_sdpa")
    ]
    jobs = [Job(key=cell.key({}), cell=cell, log="") for cell in cells]
    took: dict[int, list[float]] = {1: [], 2: []}
    for workers in (1, 2, 2, 1):  # there and back, so that a slow drift cancels
        with LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as local:
            executor = ClusterExecutor(connect(local.scheduler_address))
            list(executor.run(jobs[: 2 * workers], Stop()))  # the fork servers start here
            begin = time.perf_counter()
            ends = [ended for _, ended in executor.run(jobs, Stop())]
            took[workers].append(time.perf_counter() - begin)
            assert {one.status for one in ends} == {"nan", "ok"}, ends
            executor.close()
    one, two = (sum(times) / len(times) for times in took.values())
    print(
        f"cluster: {len(jobs)} cells take {one:.1f} s on one worker, {two:.1f} s on two: {one / two:.2f} x (bound 1.8)"
    )
    return one / two


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", action="store_true", help="also two dask workers against one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kept = isolation(Path(folder)) <= 0.1 or sys.platform != "linux"
    kept &= overhead() <= 1.02
    if options.cluster:
        kept &= cluster() >= 1.8
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
