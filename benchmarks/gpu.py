"""The fixes and the trace on a GPU: one command, one folder of JSON and Markdown, at most 6 minutes on an H100.

    python benchmarks/gpu.py --out runs/gpu [--device cuda] [--parts dead_rows fixes ...] [--small]

Every part runs in a process of its own with a time limit, the most important first; a part that fails or runs out of
time is named in the report and leaves the others alone. `--small --device cpu` tries the whole script on a CPU: its
figures say nothing about a GPU. The script needs the package, its dependencies and the scripts beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from eval_speed import batch_of, trainer_of
from torch.utils._python_dispatch import TorchDispatchMode
from trace_overhead import bare, traced

import mpsdiag
from mpsdiag import device as devices
from mpsdiag.probes.declaration import Refused
from mpsdiag.probes.lab import forced
from mpsdiag.probes.run import BACKENDS
from mpsdiag.serialization import dumps
from mpsdiag.statistics import bootstrap_interval, median

MEBIBYTE = 2**20
LIMITS = {"dead_rows": 90, "fixes": 100, "trainer": 40, "trace": 60, "invariance": 60}
"""Seconds a part may take; together under 6 minutes."""
GOALS = {
    "safe_sdpa / sdpa": "at most 1.02",
    "eager / safe_sdpa": "at least 3 at the greatest length",
    "memory safe_sdpa / eager": "at most 0.25 at the greatest length",
    "synchronizations safe_sdpa - sdpa": "0",
    "mps_safe / standard": "",
    "memory mps_safe / standard": "",
    "traced / bare": "at most 1.02",
    "watched / bare": "at most 1.02",
}
WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")
"""ATen operations after which the host waits for the device."""


class Waits(TorchDispatchMode):
    """Counts the operations that make the host wait: the same on every device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.seen[name] += 1
        result = func(*args, **(kwargs or {}))
        moved = name in ("_to_copy", "copy_") and isinstance(args[0], torch.Tensor)
        if moved and isinstance(result, torch.Tensor) and result.device.type == "cpu":
            source = args[1] if name == "copy_" else args[0]
            if isinstance(source, torch.Tensor) and source.device.type != "cpu":
                self.seen["copy to the CPU"] += 1
        return result


def llama(layers: int, hidden: int, vocabulary: int, length: int, settings: argparse.Namespace) -> Any:
    """A Llama with heads of 64 and random weights, in the dtype of this run."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=length,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).to(settings.device, getattr(torch, settings.dtype)).eval()


Works = dict[str, Callable[[], Any]]
Within = Callable[[str], AbstractContextManager[Any]]


def paired(works: Works, rounds: int, device: str, within: Within = lambda _: nullcontext()) -> dict[str, list[float]]:
    """Seconds of every work, round by round in shuffled order, after one untimed round.

    Each work runs inside `within(its name)`, which is entered before the clock starts.
    """
    order, taken = random.Random(0), {name: list[float]() for name in works}
    for turn in range(-1, rounds):
        for name in order.sample(sorted(works), len(works)):
            with within(name):
                devices.synchronize(device)
                start = time.perf_counter()
                works[name]()
                devices.synchronize(device)
                seconds = time.perf_counter() - start
            if turn >= 0:
                taken[name].append(seconds)
    return taken


def peaks(works: Works, device: str, within: Within = lambda _: nullcontext()) -> dict[str, int | None]:
    """Peak device memory of each work, in bytes; None where the device does not count it, as the CPU."""
    found = {}
    for name, work in works.items():
        with within(name):
            devices.reset_peak_memory(device)
            work()
            devices.synchronize(device)
            found[name] = devices.peak_memory(device)
    return found


def ratio(name: str, ours: list[float], base: list[float], **where: Any) -> dict[str, Any]:
    """One figure: the median of the paired ratios, with its 95 % interval and the raw seconds."""
    pairs = [a / b for a, b in zip(ours, base, strict=True)]
    interval = bootstrap_interval(pairs)
    spread = None if interval is None else [interval.low, interval.high]
    return {"figure": name, **where, "value": median(pairs), "interval": spread, "raw": {"ours": ours, "base": base}}


def dead_rows(settings: argparse.Namespace) -> dict[str, Any]:
    """Fully masked rows in every backend, and the level-3 check with its backends forced in turn."""
    rows = list(_dead_row_cases(settings))
    diagnosis = mpsdiag.check(settings.device, level=1 if settings.small else 3)
    return {"rows": rows, "check": diagnosis.to_dict()}


def _dead_row_cases(settings: argparse.Namespace) -> Iterator[dict[str, Any]]:
    backends = (None, *BACKENDS.get(devices.kind_of(settings.device), ()))
    for dtype in ("float32", "bfloat16", "float16"):
        number = getattr(torch, dtype)
        for dim in (64,) if settings.small else (64, 96, 128):
            for length in (16,) if settings.small else (4, 16, 130):
                visible = torch.ones(length, length, dtype=torch.bool, device=settings.device).tril()
                visible &= torch.arange(length, device=settings.device) >= 2  # rows 0 and 1 see no key
                fills = {
                    "bool": visible,
                    "-inf": visible.new_zeros(visible.shape, dtype=number).masked_fill(~visible, -torch.inf),
                    "finfo.min": visible.new_zeros(visible.shape, dtype=number).masked_fill(
                        ~visible, torch.finfo(number).min
                    ),
                }
                for kind, mask in fills.items():
                    for grad in (False, True):
                        for backend in backends:
                            where = {
                                "backend": backend or "default",
                                "mask": kind,
                                "dtype": dtype,
                                "head_dim": dim,
                                "length": length,
                                "grad": grad,
                            }
                            yield {**where, **_dead_row(mask, number, dim, backend, grad=grad)}


def _dead_row(mask: torch.Tensor, number: torch.dtype, dim: int, backend: str | None, *, grad: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(dim)
    length = mask.shape[-1]
    query, key, value = (
        torch.randn(2, 4, length, dim, generator=generator).to(mask.device, number).requires_grad_(grad)
        for _ in range(3)
    )
    try:
        with torch.set_grad_enabled(grad), forced(backend):
            output = F.scaled_dot_product_attention(query, key, value, mask[None, None])
            if grad:
                output.float().sum().backward()
    except Refused as problem:
        return {"dead": "refused", "why": str(problem)}
    q, k, v = (tensor.detach().double().cpu() for tensor in (query, key, value))
    scores = (q @ k.mT / dim**0.5).masked_fill(
        ~(mask.cpu() if mask.dtype == torch.bool else mask.cpu() == 0), -torch.inf
    )
    live = (scores.softmax(-1) @ v)[..., 2:, :]
    got = output.detach().double().cpu()
    dead, mean = got[..., :2, :], v.mean(-2, keepdim=True)
    if not bool(dead.isfinite().all()):
        kind = "NaN"
    elif not bool(dead.any()):
        kind = "zeros"
    else:
        kind = "mean" if float((dead - mean).abs().max()) < 0.02 * float(v.abs().max()) else "other"
    gradients = [leaf.grad is not None and bool(leaf.grad.isfinite().all()) for leaf in (query, key, value)]
    return {
        "dead": kind,
        "error_of_other_rows": float((got[..., 2:, :] - live).abs().max()),
        "finite_gradients": all(gradients) if grad else None,
    }


def fixes(settings: argparse.Namespace) -> dict[str, Any]:
    """safe_sdpa compared with sdpa and eager: an evaluation step, by length; peak memory; synchronizations."""
    figures: list[dict[str, Any]] = []
    lengths, tokens = ((64, 128), 512) if settings.small else ((512, 2048, 8192), 32768)
    layers, hidden = (2, 128) if settings.small else (8, 1024)
    for length in lengths:
        model = llama(layers, hidden, 4096, length, settings)
        rows = max(2, tokens // length)
        batch = batch_of(rows, length, 4096, padded=True, device=settings.device)

        def evaluate(model: Any = model, batch: Any = batch) -> None:
            with torch.no_grad():
                model(**batch)

        def within(mode: str, model: Any = model) -> AbstractContextManager[Any]:
            return mpsdiag.apply(model, mode)

        works = dict.fromkeys(("sdpa", "safe_sdpa", "eager"), evaluate)
        taken = paired(works, 3 if settings.small else 15, settings.device, within)
        memory = peaks(works, settings.device, within)
        where = {"length": length, "rows": rows}
        figures.append(ratio("safe_sdpa / sdpa", taken["safe_sdpa"], taken["sdpa"], **where))
        figures.append(ratio("eager / safe_sdpa", taken["eager"], taken["safe_sdpa"], **where))
        if memory["safe_sdpa"] and memory["eager"]:
            share = memory["safe_sdpa"] / memory["eager"]
            figures.append({"figure": "memory safe_sdpa / eager", **where, "value": share, "raw": memory})
        counts = {}
        for mode in ("sdpa", "safe_sdpa"):
            with within(mode), Waits() as waits:
                evaluate()
            counts[mode] = dict(waits.seen)
        more = sum(counts["safe_sdpa"].values()) - sum(counts["sdpa"].values())
        figures.append({"figure": "synchronizations safe_sdpa - sdpa", **where, "value": more, "raw": counts})
    return {"figures": figures}


def trainer(settings: argparse.Namespace) -> dict[str, Any]:
    """`MPSSafeTrainer(always=True)` compared with the stock Trainer, with a vocabulary of 152k."""
    from transformers import Trainer

    vocabulary, length, rows = (2048, 64, 2) if settings.small else (152_064, 1024, 8)
    model = llama(2, 128 if settings.small else 512, vocabulary, length, settings)
    batch = batch_of(rows, length, vocabulary, padded=True, device=settings.device)
    kinds: dict[str, Any] = {
        "standard": trainer_of(Trainer, model, settings),
        "mps_safe": trainer_of(mpsdiag.MPSSafeTrainer, model, settings, always=True),
    }
    works = {
        name: (lambda kind=kind: kind.prediction_step(model, dict(batch), prediction_loss_only=True))
        for name, kind in kinds.items()
    }
    taken = paired(works, 3 if settings.small else 9, settings.device)
    memory = peaks(works, settings.device)
    where = {"vocabulary": vocabulary, "length": length, "rows": rows}
    figures = [ratio("mps_safe / standard", taken["mps_safe"], taken["standard"], **where)]
    if memory["mps_safe"] and memory["standard"]:
        share = memory["mps_safe"] / memory["standard"]
        figures.append({"figure": "memory mps_safe / standard", **where, "value": share, "raw": memory})
    return {"figures": figures}


def trace(settings: argparse.Namespace) -> dict[str, Any]:
    """The cheap pass of the trace, and `mpsdiag.watch` if this version has it, on evaluations without a fault."""
    figures = []
    for layers, hidden in ((2, 128),) if settings.small else ((12, 768), (24, 1024)):
        model = llama(layers, hidden, 4096, 512, settings)
        length = 64 if settings.small else 512
        batch = batch_of(4, length, 4096, padded=True, device=settings.device)
        batches = [batch] * (2 if settings.small else 4)
        works: Works = {
            "bare": lambda model=model, batches=batches: bare(model, batches),
            "traced": lambda model=model, batches=batches: traced(model, batches),
        }
        if watch := getattr(mpsdiag, "watch", None):

            def watched(model: Any = model, batches: Any = batches, watch: Any = watch) -> None:
                with watch():
                    bare(model, batches)

            works["watched"] = watched
        taken = paired(works, 3 if settings.small else 15, settings.device)
        where = {"layers": layers, "hidden": hidden, "length": length}
        others = [name for name in works if name != "bare"]
        figures += [ratio(f"{name} / bare", taken[name], taken["bare"], **where) for name in others]
    return {"figures": figures}


def invariance(settings: argparse.Namespace) -> dict[str, Any]:
    """Padded batches against each sequence alone, for the built-in models, as `check` reports it."""
    from mpsdiag.words import BUILTIN_DECODERS

    dtype = "float32" if settings.small else settings.dtype
    found = {}
    for model in BUILTIN_DECODERS[:1] if settings.small else BUILTIN_DECODERS:
        document = mpsdiag.check(settings.device, model=model, dtype=dtype).to_dict()
        found[model] = {
            "verdict": document["verdict"],
            "reason": document["reason"],
            "invariance": document.get("invariance"),
        }
    return {"models": found, "dtype": dtype}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "dead_rows": dead_rows,
    "fixes": fixes,
    "trainer": trainer,
    "trace": trace,
    "invariance": invariance,
}


def run_part(part: str, settings: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run a part in its own process; its result, or why there is none."""
    file, log = folder / f"{part}.json", folder / f"{part}.log"
    command = [sys.executable, __file__, "--part", part, "--out", str(folder)]
    command += ["--device", settings.device, "--dtype", settings.dtype, *(["--small"] * settings.small)]
    began = time.monotonic()
    with log.open("wb") as stream:
        try:
            done = subprocess.run(
                command, stdout=stream, stderr=stream, timeout=LIMITS[part], env=os.environ, check=False
            )
            problem = None if done.returncode == 0 else f"ended with exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            problem = f"took longer than {LIMITS[part]} s"
    seconds = time.monotonic() - began
    if problem is None:
        return {"seconds": seconds, **json.loads(file.read_text(encoding="utf-8"))}
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
    return {"seconds": seconds, "problem": problem, "log": tail}


def about(settings: argparse.Namespace) -> dict[str, Any]:
    """The card, the versions, the command and the date."""
    import transformers

    on_cuda = devices.kind_of(settings.device) == "cuda"
    card = torch.cuda.get_device_name(settings.device) if on_cuda else platform.processor() or "CPU"
    return {
        "card": card,
        "device": settings.device,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if on_cuda else None,
        "transformers": transformers.__version__,
        "mpsdiag": mpsdiag.__version__,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "command": "python benchmarks/gpu.py " + " ".join(settings.shown),
        "small": settings.small,
    }


def markdown(head: dict[str, Any], results: dict[str, dict[str, Any]]) -> str:
    """The folder's page."""
    lines = [
        f"# {head['card']}",
        "",
        f"`{head['command']}`, {head['date']}",
        "",
        ", ".join(f"{name} {head[name]}" for name in ("torch", "transformers", "cuda", "cudnn", "mpsdiag"))
        + ". Measured, not emulated.",
    ]
    if head["small"]:
        lines += ["", "**Small sizes: a trial of the script. Its figures say nothing about a GPU.**"]
    for part, result in results.items():
        lines += ["", f"## {part} ({result['seconds']:.0f} s)", ""]
        if "problem" in result:
            lines += [f"This part {result['problem']}:", "```", *result["log"], "```"]
        if "figures" in result:
            lines += ["| figure | where | value | 95 % interval | goal |", "|---|---|---|---|---|"]
            lines += [_figure(figure) for figure in result["figures"]]
        if "rows" in result:
            lines += [f"Level {result['check']['level']} check: {result['check']['reason']}", ""]
            lines += ["| backend | mask | fully masked rows |", "|---|---|---|"]
            lines += _dead_row_table(result["rows"])
        for model, found in result.get("models", {}).items():
            section = found["invariance"] or {}
            lines.append(f"- {model}: {section.get('verdict', found['verdict'])}. {found['reason']}")
    return "\n".join(lines) + "\n"


def _figure(figure: dict[str, Any]) -> str:
    known = ("figure", "value", "interval", "raw")
    where = ", ".join(f"{name} {value}" for name, value in figure.items() if name not in known)
    interval = figure.get("interval")
    spread = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
    return f"| {figure['figure']} | {where} | {figure['value']:.3f} | {spread} | {GOALS[figure['figure']]} |"


def _dead_row_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    kinds = {(row["backend"], row["mask"]): Counter[str]() for row in rows}
    for row in rows:
        kinds[row["backend"], row["mask"]][row["dead"]] += 1
    for (backend, mask), counts in kinds.items():
        yield f"| {backend} | {mask} | {', '.join(f'{kind} x {n}' for kind, n in counts.most_common())} |"


def main() -> None:
    """Run every part, write the folder, print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    settings.shown = sys.argv[1:]
    folder: Path = settings.out
    folder.mkdir(parents=True, exist_ok=True)
    settings.scratch = str(folder / "scratch")
    if settings.part:
        result = PARTS[settings.part](settings)
        (folder / f"{settings.part}.json").write_text(dumps(result), encoding="utf-8")
        return
    results = {part: run_part(part, settings, folder) for part in settings.parts}
    head = about(settings)
    (folder / "results.json").write_text(dumps({"about": head, "parts": results}), encoding="utf-8")
    page = markdown(head, results)
    (folder / "README.md").write_text(page, encoding="utf-8")
    sys.stdout.write(page)
    sys.exit(any("problem" in result for result in results.values()))


if __name__ == "__main__":
    main()
