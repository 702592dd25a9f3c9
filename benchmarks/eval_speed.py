"""The cost of correct numbers in evaluation: attention modes and trainers, as ratios within one run, and peak memory.

    python benchmarks/eval_speed.py [--lengths 512 1024 2048] [--rounds 15] [--device cpu] [--dtype float32]

Every round runs every variant once, in shuffled order, on the same batch and the same weights; a ratio is the median
over the rounds of the two times of one round. Peak memory is that of a process of its own for each figure.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

from mpsdiag import device as devices
from mpsdiag.fixes.model import apply
from mpsdiag.fixes.process import install
from mpsdiag.statistics import bootstrap_interval, iqr_ratio, median
from mpsdiag.trainers import cpu_losses
from mpsdiag.trainers.mps_safe import MPSSafeTrainer

MEBIBYTE = 2**20
# CPU time of the process is for a machine that others use as well; it needs --device cpu and one thread.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# safe_sdpa is put on the model, "installed" is the same for the whole process.
MODES = ("sdpa", "safe_sdpa", "installed", "eager", "mps_safe")
MEMORY_VOCABULARY = 50_257


def model_for(vocabulary: int, length: int, arguments: argparse.Namespace) -> LlamaForCausalLM:
    """A small Llama with heads of 64, so that attention is a fair share of the work; random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=arguments.hidden,
        intermediate_size=3 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // 64,
        num_key_value_heads=arguments.hidden // 64,
        max_position_embeddings=length,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, arguments.dtype))
    return model.to(arguments.device).eval()


def batch_of(rows: int, length: int, vocabulary: int, *, padded: bool, device: str) -> dict[str, torch.Tensor]:
    """Left-padded rows of a quarter to all of the length, or full rows with an attention mask of ones."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, vocabulary, (rows, length), generator=generator)
    mask = torch.ones(rows, length, dtype=torch.long)
    if padded:
        for row in range(rows):
            mask[row, : (length * 3 * row) // (4 * rows)] = 0
    batch = {"input_ids": ids * mask, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    return {name: value.to(device) for name, value in batch.items()}


def trainer_of(kind: type[Trainer], model: Any, arguments: argparse.Namespace, **options: Any) -> Trainer:
    """A Trainer that only evaluates, one batch at a time."""
    given = TrainingArguments(
        output_dir=arguments.scratch, report_to="none", use_cpu=arguments.device == "cpu", logging_nan_inf_filter=False
    )
    return kind(model=model, args=given, **options)


def timed(trainer: Trainer, batch: dict[str, torch.Tensor], arguments: argparse.Namespace) -> float:
    """Seconds of one evaluation step, loss included."""
    clock = CLOCKS[arguments.clock]
    devices.synchronize(arguments.device)
    start = clock()
    trainer.prediction_step(trainer.model, dict(batch), prediction_loss_only=True)
    devices.synchronize(arguments.device)
    return clock() - start


def rounds_of(length: int, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Raw times of every variant at one length, round by round."""
    model = model_for(arguments.vocabulary, length, arguments)
    standard = trainer_of(Trainer, model, arguments)
    safe = trainer_of(MPSSafeTrainer, model, arguments, always=True)
    rows = max(1, arguments.tokens // length)
    batches = {
        name: batch_of(rows, length, arguments.vocabulary, padded=name == "padded", device=arguments.device)
        for name in ("padded", "full")
    }
    trainers = {mode: ("sdpa", safe) if mode == "mps_safe" else (mode, standard) for mode in arguments.modes}
    variants = [(mode, kind) for mode in trainers for kind in batches]
    order = random.Random(0)
    times: dict[str, list[float]] = {"/".join(variant): [] for variant in variants}
    for round_number in range(-1, arguments.rounds):  # round -1 warms up
        # Shuffled, not rotated: in a rotation each variant always follows the same other one, and its memory.
        for name, kind in order.sample(variants, len(variants)):
            mode, trainer = trainers[name]
            with install("safe_sdpa") if mode == "installed" else apply(model, mode):
                seconds = timed(trainer, batches[kind], arguments)
            if round_number >= 0:
                times[f"{name}/{kind}"].append(seconds)
    return times


COMPARED = {
    "safe_sdpa / sdpa, padded": ("safe_sdpa/padded", "sdpa/padded"),
    "safe_sdpa / sdpa, not padded": ("safe_sdpa/full", "sdpa/full"),
    "safe_sdpa installed / sdpa, padded": ("installed/padded", "sdpa/padded"),
    "safe_sdpa installed / sdpa, not padded": ("installed/full", "sdpa/full"),
    "eager / safe_sdpa, padded": ("eager/padded", "safe_sdpa/padded"),
    "mps_safe / standard, padded": ("mps_safe/padded", "sdpa/padded"),
    "mps_safe / standard, not padded": ("mps_safe/full", "sdpa/full"),
}


def speed_table(arguments: argparse.Namespace) -> None:
    """Print the ratios, with the 95 % interval of the median and the noise of the baseline."""
    print(f"| ratio of evaluation times | {' | '.join(f'L={length}' for length in arguments.lengths)} |")
    print(f"|---|{'---|' * len(arguments.lengths)}")
    found = {length: rounds_of(length, arguments) for length in arguments.lengths}
    for name, (ours, baseline) in COMPARED.items():
        if any(variant.split("/")[0] not in arguments.modes for variant in (ours, baseline)):
            continue
        cells = []
        for times in found.values():
            ratios = [a / b for a, b in zip(times[ours], times[baseline], strict=True)]
            interval = bootstrap_interval(ratios)
            spread = "" if interval is None else f" [{interval.low:.3f}, {interval.high:.3f}]"
            cells.append(f"{median(ratios):.3f}{spread}")
        print(f"| {name} | {' | '.join(cells)} |")
    base = "sdpa/padded"
    cells = [f"{median(times[base]):.3f} s, IQR {iqr_ratio(times[base]):.0%}" for times in found.values()]
    print(f"| sdpa, padded: median time | {' | '.join(cells)} |")


def memory_of_evaluation(kind: str, length: int, arguments: argparse.Namespace) -> int:
    """Peak of this process in bytes, after one evaluation step with a large vocabulary."""
    model = model_for(MEMORY_VOCABULARY, length, arguments)
    options = {"always": True} if kind == "mps_safe" else {}
    trainer = trainer_of(MPSSafeTrainer if options else Trainer, model, arguments, **options)
    batch = batch_of(2, length, MEMORY_VOCABULARY, padded=True, device=arguments.device)
    trainer.prediction_step(model, batch, prediction_loss_only=True)
    return devices.process_peak_memory()


def memory_of_loss(kind: str, length: int) -> int:
    """How many bytes the loss alone adds to the peak of this process, on top of the existing logits.

    On the CPU moving a chunk there makes no copy, so one is made by hand: what another device would need.
    """
    logits = torch.empty(2 * length, MEMORY_VOCABULARY).uniform_(-4, 4)
    labels = torch.arange(2 * length) % MEMORY_VOCABULARY
    small = torch.empty(64, 11).uniform_()
    cpu_losses.cross_entropy(small, labels[:64] % 11)  # loads what is loaded once
    torch.nn.functional.cross_entropy(small, labels[:64] % 11)
    forget_peak()
    before = devices.process_peak_memory()
    if kind == "chunked":
        with mock.patch.object(cpu_losses, "to_cpu", torch.clone):
            cpu_losses.cross_entropy(logits, labels)
    else:
        torch.nn.functional.cross_entropy(logits, labels)
    return devices.process_peak_memory() - before


def forget_peak() -> None:
    """On Linux, reset the peak to the current size: imports had a higher one."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5", encoding="ascii")


def memory_table(arguments: argparse.Namespace) -> None:
    """Print the peaks, each from its own process."""

    def child(*words: str) -> int:
        shape = ["--hidden", str(arguments.hidden), "--layers", str(arguments.layers)]
        found = subprocess.run(
            [sys.executable, __file__, "--measure", *words, *shape], capture_output=True, text=True, check=True
        )
        return int(json.loads(found.stdout))

    print(f"| peak memory, MiB | {' | '.join(f'L={length}' for length in arguments.lengths)} |")
    print(f"|---|{'---|' * len(arguments.lengths)}")
    rows: dict[str, list[float]] = {
        "one chunk": [cpu_losses.CHUNK_BYTES] * len(arguments.lengths),
        "all logits (2 x L x 50257)": [2 * length * MEMORY_VOCABULARY * 4 for length in arguments.lengths],
        "loss alone, chunked, on top of the logits": [child("loss", "chunked", str(n)) for n in arguments.lengths],
        "loss alone, stock, on top of the logits": [child("loss", "stock", str(n)) for n in arguments.lengths],
        "evaluation, mps_safe minus standard": [
            child("evaluation", "mps_safe", str(n)) - child("evaluation", "standard", str(n)) for n in arguments.lengths
        ],
    }
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(f'{value / MEBIBYTE:.0f}' for value in values)} |")


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a batch, padding included")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="always with sdpa")
    parser.add_argument("--scratch", default="runs/eval_speed")
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--measure", nargs=3, metavar=("WHAT", "KIND", "LENGTH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    if arguments.measure:
        what, kind, length = arguments.measure
        if what == "evaluation":
            print(memory_of_evaluation(kind, int(length), arguments))
        else:
            print(memory_of_loss(kind, int(length)))
        return
    threads, name = torch.get_num_threads(), Path(__file__).name
    where = f"{arguments.device}, {arguments.dtype}, torch {torch.__version__}, {threads} threads"
    print(f"{name}: {where}, {arguments.clock} time\n")
    speed_table(arguments)
    if not arguments.skip_memory:
        print()
        memory_table(arguments)


if __name__ == "__main__":
    main()
