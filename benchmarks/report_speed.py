"""How long a report of 100,000 records takes, and how much memory: under 10 s and 1 GiB are promised.

    python benchmarks/report_speed.py [RECORDS]

Two journals of made-up records, each rendered in every format in a fresh process, as `mpsdiag report` is:
`rounds` has few cells with many rounds, `cells` has as many different cells as records. A report is one thread, so
the seconds of the processor are what it takes on a machine that does nothing else; those by the clock are shown.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mpsdiag.benching.journal.record import SCHEMA

SECONDS = 10.0
MEMORY = 2**30
FORMATS = ("terminal", "markdown", "html", "csv", "json", "parquet")
MODES = ("sdpa", "eager", "safe_sdpa", "unmask_sdpa", "min_mask_sdpa")
TRAINERS = ("standard", "mps_safe", "cpu_loss", "cpu_forward", "grad_eval")
ENVIRONMENT = {
    "chip": "Made up",
    "system": "Linux",
    "memory": 2**33,
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    "variables": {"PYTORCH_ENABLE_MPS_FALLBACK": "1"},
}


def record(cell_number: int, round_number: int) -> dict:
    """A line of a journal: round 0 has the verdict, the others ten durations."""
    dice = random.Random(cell_number * 1009 + round_number)
    attention, trainer = MODES[cell_number % 5], TRAINERS[cell_number // 5 % 5]
    side = ("left", "right")[cell_number // 25 % 2]
    bad = attention == "sdpa" and side == "left" and trainer != "mps_safe"
    loss = "nan" if bad else 5.5
    line = {
        "schema": SCHEMA,
        "kind": "cell",
        "key": f"{cell_number:016x}",
        "round": round_number,
        "cell": {
            "model": "tiny-gpt2",
            "attn_implementation": attention,
            "trainer": trainer,
            "padding_side": side,
            "seed": cell_number // 50,
            "emulate": "2.8",
            "emulate_macos": 15,
        },
        "status": "ok",
        "started": f"2026-11-20T08:00:{round_number % 60:02d}Z",
        "seconds": 1.0,
        "environment": ENVIRONMENT,
    }
    if round_number == 0:
        line["status"] = "nan" if bad else "ok"
        line["measured"] = {
            "train_losses": [5.6, 5.5, 5.4],
            "grad_norms": [1.0, 1.0, 1.0],
            "eval_losses": [loss] * 4,
            "eval_loss": loss,
            "stock_eval_loss": 5.5,
            "nonfinite_batches": 4 * bad,
            "dead_rows": 100,
            "loss_moved_by": None if bad else 0.0,
        }
    if round_number or cell_number % 7 == 0:
        step = 0.01 * (1.2 if attention == "eager" else 1.0)
        line["timing"] = {
            "device": "cpu",
            "warmup": 2,
            "train_step": [2 * step * dice.uniform(0.97, 1.03) for _ in range(5)],
            "eval_step": [step * dice.uniform(0.97, 1.03) for _ in range(5)],
            "eval_tokens": 200,
        }
    return line


def write(path: Path, records: int, rounds: int) -> None:
    """Write a journal of made-up records."""
    header = {
        "schema": SCHEMA,
        "kind": "header",
        "mpsdiag": "0.1.0",
        "command": "mpsdiag bench",
        "created": "2026-11-20T08:00:00Z",
        "environment": ENVIRONMENT,
    }
    with path.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(header) + "\n")
        for number in range(records):
            stream.write(json.dumps(record(number // rounds, number % rounds)) + "\n")


def measure(journal: Path, form: str, out: Path) -> tuple[float, float, int]:
    """Seconds by the clock, seconds of processor and peak bytes of one report in a process of its own."""
    code = (
        "import resource, sys\n"
        "from mpsdiag.cli.main import app\n"
        "try:\n"
        "    app(sys.argv[1:])\n"
        "finally:\n"
        "    used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)\n"
    )
    words = ["report", str(journal), "--format", form, "--out", str(out)]
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, timeout=600)
    if "not a record" in done.stderr:
        raise SystemExit(f"the made-up records are not read: {done.stderr.splitlines()[0]}")
    seconds, size = done.stderr.split()[-2:]
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - begin, float(seconds), int(size) * unit


def main() -> int:
    """Measure, print, and fail if a promise is broken."""
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    worst_time, worst_memory = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        for name, rounds in (("rounds", 100), ("cells", 1)):
            journal = Path(folder) / f"{name}.jsonl"
            write(journal, records, rounds)
            size = journal.stat().st_size / 2**20
            print(f"{name}: {records:,} records, {records // rounds:,} cells, {size:.0f} MiB")
            for form in FORMATS:
                clock, seconds, memory = measure(journal, form, Path(folder) / f"out-{name}.{form}")
                worst_time, worst_memory = max(worst_time, seconds), max(worst_memory, memory)
                print(f"  {form:9} {clock:6.2f} s, processor {seconds:6.2f} s, {memory / 2**20:6.0f} MiB")
    kept = worst_time < SECONDS and worst_memory < MEMORY
    print(f"worst: {worst_time:.2f} of {SECONDS:.0f} processor seconds, {worst_memory / 2**20:.0f} of 1024 MiB")
    print("kept" if kept else "BROKEN")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
