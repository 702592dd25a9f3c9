"""What the matrix costs beside the work itself, as ratios within one run.

1. Isolation: an empty cell in its own process, from a fork server with torch and transformers, against a fresh
   interpreter that imports them. Bound: 0.1 s a cell on Linux.
2. Harness: the timed evaluation steps of a timing leg, against a bare loop over the same trainer, model and batch.
   Bound: 2 %.
3. Cluster (with --cluster): untimed cells on two dask workers with one thread each, against one worker. Bound: 1.8 x.

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

from mpsdiag.matrix.isolation import Isolation
from mpsdiag.matrix.job import Answer, Job
from mpsdiag.matrix.record import Cell

CELLS = 20
STEPS = 40
PAIRS = 8
WORK_SECONDS = 0.5


def isolation(folder: Path) -> float:
    """Seconds that a process of its own costs an empty cell; prints it beside a fresh interpreter's."""
    apart = Isolation()
    apart.warm_up(folder / "start.log")
    job = Job(key="empty", cell=Cell(), function="mpsdiag.matrix.child:nothing", log=str(folder / "cell.log"))
    cost = statistics.median(apart.run(job).seconds for _ in range(CELLS))
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import mpsdiag.matrix.preload"], check=True)
    fresh = time.perf_counter() - begin
    print(f"isolation: {cost * 1000:.0f} ms a cell (bound 100); a fresh interpreter takes {fresh:.1f} s")
    return cost


def overhead() -> float:
    """How much longer the timed steps of a cell take than bare ones; the two take turns, so that drift cancels."""
    from mpsdiag.diagnosis.preparation import prepare
    from mpsdiag.matrix.cell import case_of, timing

    cell = Cell(sequence_length=256, batch_size=8, train_steps=0)
    ratios = []
    for _ in range(PAIRS):
        with prepare(case_of(cell)) as prepared:
            batch = max(prepared.eval_batches, key=lambda one: int(one["attention_mask"].sum()))
            for _ in range(3):
                prepared.eval_step(batch)
            bare = []
            for _ in range(STEPS):
                begin = time.perf_counter()
                prepared.trainer.prediction_step(prepared.model, batch, prediction_loss_only=True)
                bare.append(time.perf_counter() - begin)
        answer = timing(cell, warmup=3, repeats=STEPS)
        assert answer.timing is not None
        # The least of many: what the work takes when nothing else is in the way, on either side.
        ratios.append(min(answer.timing.eval_step) / min(bare))
    ratio = statistics.median(ratios)
    print(f"harness: an evaluation step takes {ratio:.3f} x the bare one (bound 1.02), of {PAIRS} pairs")
    return ratio


def busy(job: Job) -> Answer:
    """A cell for the cluster: takes its time without taking a core, so that two workers can show what they add."""
    time.sleep(WORK_SECONDS if job.cell.seed >= 0 else 0)
    return Answer(status="ok")


def cluster() -> float:
    """How many times faster two workers are than one, over cells that only wait."""
    from distributed import LocalCluster

    from mpsdiag.matrix.cluster import connect
    from mpsdiag.matrix.interrupt import Stop
    from mpsdiag.matrix.isolation import LIGHT

    took = {}
    for workers in (1, 2):
        with LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as local:
            executor = connect(local.scheduler_address)
            executor.preload = LIGHT
            jobs = [
                Job(key=f"{seed:016x}", cell=Cell(seed=seed), function="harness:busy", log="")
                for seed in range(24)
            ]
            list(executor.run(jobs[:workers], Stop()))  # the fork servers start here
            begin = time.perf_counter()
            ends = [ended for _, ended in executor.run(jobs, Stop())]
            took[workers] = time.perf_counter() - begin
            assert [one.status for one in ends] == ["ok"] * len(jobs), ends
            executor.close()
    gain = took[1] / took[2]
    print(f"cluster: two workers are {gain:.2f} x one (bound 1.8)")
    return gain


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
