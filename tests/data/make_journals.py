"""Writes the journals of this folder again; run it from here after a change of the schema.

They are made up, not measured: small, with every way a cell can end, and numbers that are easy to check by eye.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VERSIONS = {"torch": "2.8.0", "transformers": "5.23.0"}
MAC = {
    "mpsdiag": "0.1.0",
    "python": "3.12.4",
    "system": "macOS 15.5",
    "system_build": "24F74",
    "machine": "arm64",
    "chip": "Apple M2 Max",
    "cpu_cores": 12,
    "gpu_cores": 38,
    "memory": 64 * 2**30,
    "versions": VERSIONS,
    "mps_built": True,
    "mps_available": True,
    "mps_usable": True,
    "default_attention": "sdpa",
    "variables": {"PYTORCH_ENABLE_MPS_FALLBACK": "1"},
}
LINUX = {
    "mpsdiag": "0.1.0",
    "python": "3.11.9",
    "system": "Linux 6.1",
    "machine": "x86_64",
    "chip": "Example CPU @ 2.00GHz",
    "cpu_cores": 2,
    "memory": 8 * 2**30,
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    "variables": {},
}


def header(environment: dict[str, Any], command: str, **more: Any) -> dict[str, Any]:
    return {
        "schema": 2,
        "kind": "header",
        "mpsdiag": "0.1.0",
        "command": command,
        "created": "2026-11-20T08:00:00Z",
        "baseline": "sdpa",
        "environment": environment,
        **more,
    }


def cell(**axes: Any) -> dict[str, Any]:
    return {
        "model": "tiny-gpt2",
        "attention": "sdpa",
        "trainer": "standard",
        "padding": "left",
        "dtype": "float32",
        "device": "mps",
        "emulate": None,
        "emulate_macos": None,
        "dataset": "synthetic",
        "eval_dataset": None,
        "sequence_length": 64,
        "batch_size": 4,
        "pad_to_multiple_of": None,
        "train_steps": 3,
        "eval_batches": 4,
        "seed": 0,
        "warmup": 2,
        "repeats": 5,
        "threads": None,
        **axes,
    }


def key(spec: dict[str, Any]) -> str:
    return "-".join(str(spec[name]) for name in ("model", "attention", "trainer", "padding", "emulate", "dtype"))


def record(spec: dict[str, Any], status: str = "ok", number: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "schema": 2,
        "kind": "cell",
        "key": key(spec),
        "round": number,
        "cell": spec,
        "status": status,
        "reason": None,
        "signal": None,
        "log_tail": "",
        "started": f"2026-11-20T08:{number:02d}:00Z",
        "seconds": 1.5,
        "measured": None,
        "timing": None,
        "environment": {},
        **more,
    }


def measured(moved: float | None = 0.0, *, exact: bool | None = True, dead: int = 118) -> dict[str, Any]:
    return {
        "train_losses": [5.61, 5.58, 5.55],
        "grad_norms": [1.9, 1.8, 1.7],
        "eval_losses": [5.5 + (moved or 0.0), 5.52, 5.48, 5.5],
        "eval_loss": 5.5 + (moved or 0.0),
        "stock_eval_loss": 5.5 + (moved or 0.0),
        "nonfinite_batches": 0,
        "dead_rows": dead,
        "max_abs_logit_diff": 2.1e-6,
        "bound": 9.5e-6,
        "loss_moved_by": moved,
        "exact": exact,
        "real_tokens": 812,
        "pad_tokens": 212,
    }


def sick() -> dict[str, Any]:
    return {
        **measured(None, exact=False),
        "eval_losses": ["nan", 5.52, "nan", "nan"],
        "eval_loss": "nan",
        "stock_eval_loss": 5.52,
        "nonfinite_batches": 3,
        "first_nonfinite": {
            "batch": 0,
            "layer": 0,
            "module": "transformer.h.0.attn",
            "operation": "scaled_dot_product_attention",
            "rows": 21,
        },
        "nonfinite_rows": [[3, 3, 2, 2, 1, 1, 0, 0], [3, 3, 3, 3, 3, 3, 3, 3]],
    }


def timing(middle: float, number: int, tokens: int = 203) -> dict[str, Any]:
    dice = random.Random(f"{middle} {number}")
    return {
        "device": "mps",
        "warmup": 2,
        "train_step": [round(2.5 * middle * dice.uniform(0.97, 1.03), 6) for _ in range(5)],
        "eval_step": [round(middle * dice.uniform(0.98, 1.02), 6) for _ in range(5)],
        "train_tokens": 420,
        "train_pads": 0,
        "eval_tokens": tokens,
        "eval_pads": 53,
    }


def timed(spec: dict[str, Any], middle: float, device: str = "mps") -> list[dict[str, Any]]:
    memory = {"peak_process_memory": 900 * 2**20, "peak_device_memory": int(40 * 2**20 * middle * 100)}
    return [
        record(spec, number=number, timing={**timing(middle, number), "device": device}, measured=memory)
        for number in (1, 2, 3)
    ]


def write(name: str, lines: list[dict[str, Any]], torn: str = "") -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (HERE / name).write_text(text + torn, encoding="utf-8")


def every_end() -> list[dict[str, Any]]:
    """A Mac, measured: NaN, wrong, crash, oom, timeout, error, interrupted, skip, moved and exact."""
    lines = [header(MAC, "mpsdiag bench --device mps --out reports/mac")]
    stock = cell()
    lines += [record(stock, "nan", measured=sick(), reason="3 of 4 evaluation batches are not finite")]
    lines += timed(stock, 0.0100)
    safe = cell(attention="safe_sdpa")
    lines += [record(safe, measured=measured()), *timed(safe, 0.0103)]
    eager = cell(attention="eager")
    lines += [record(eager, measured=measured(0.0013, exact=False)), *timed(eager, 0.0131)]
    mask = cell(attention="min_mask_sdpa")
    wrong = {**measured(0.21, exact=False), "max_abs_logit_diff": 0.37}
    lines += [record(mask, "wrong", measured=wrong, reason="logits are off the reference"), *timed(mask, 0.0090)]
    lines += [
        record(
            cell(attention="unmask_sdpa"),
            "crash",
            signal="SIGABRT",
            reason="the process was ended by SIGABRT",
            log_tail='loc("mps_matmul"): error: incompatible dimensions\nLLVM ERROR: Failed to infer result type(s).\n',
        ),
        record(cell(attention="flex_attention"), "skip", reason="flex_attention needs torch.compile for MPS"),
        record(cell(trainer="grad_eval"), "oom", reason="MPS backend out of memory (9.1 GiB of 9.0 GiB)"),
        record(cell(trainer="cpu_forward"), "timeout", reason="no answer within 300 s", log_tail="step 1\nstep 2\n"),
        record(cell(trainer="cpu_loss"), "error", reason="ValueError: no label in batch 3"),
    ]
    helped = cell(trainer="mps_safe")
    lines += [record(helped, measured=measured()), *timed(helped, 0.0142)]
    lines += [record(helped, "interrupted", 4, reason="stopped by the user")]
    for attention, middle in (("sdpa", 0.0099), ("safe_sdpa", 0.0102), ("eager", 0.0130)):
        spec = cell(attention=attention, padding="right")
        lines += [record(spec, measured=measured(dead=0)), *timed(spec, middle)]
    return lines


def emulated() -> list[dict[str, Any]]:
    """A Linux machine: two emulated releases, verdicts emulated, timings of its CPU."""
    lines = [header(LINUX, "mpsdiag bench --emulate 2.8 --emulate 2.9 --model tiny-gpt2 --model tiny-llama")]
    for release in ("2.8", "2.9"):
        for model in ("tiny-gpt2", "tiny-llama"):
            for attention, middle in (("sdpa", 0.004), ("safe_sdpa", 0.0042), ("eager", 0.0047)):
                spec = cell(model=model, attention=attention, device="cpu", emulate=release, emulate_macos=15)
                broken = release == "2.8" and attention == "sdpa"
                eager = attention == "eager"
                found = sick() if broken else measured(0.0013 if eager else 0.0, exact=not eager)
                lines += [record(spec, "nan" if broken else "ok", measured=found), *timed(spec, middle, "cpu")]
    return lines


def older() -> list[dict[str, Any]]:
    """What `every_end.jsonl` is compared with: sdpa was right, safe_sdpa was NaN, eager was slower."""
    before = {**MAC, "versions": {**VERSIONS, "torch": "2.7.1"}, "system": "macOS 15.4"}
    lines = [header(before, "mpsdiag bench --device mps", created="2026-10-01T08:00:00Z")]
    stock = cell()
    lines += [record(stock, measured=measured()), *timed(stock, 0.0100)]
    safe = cell(attention="safe_sdpa")
    lines += [record(safe, "nan", measured=sick()), *timed(safe, 0.0103)]
    for attention, side, middle in (("eager", "left", 0.0160), ("sdpa", "right", 0.0099), ("eager", "right", 0.0101)):
        spec = cell(attention=attention, padding=side)
        lines += [record(spec, measured=measured(0.0013)), *timed(spec, middle)]
    return [*lines, record(cell(attention="eager", dtype="bfloat16"), measured=measured())]


def main() -> None:
    write("every_end.jsonl", every_end())
    write("emulated.jsonl", emulated())
    write("older.jsonl", older())
    lines = every_end()
    write("torn.jsonl", lines[:6], torn=json.dumps(lines[6])[:200])
    write("newer.jsonl", [header(MAC, "mpsdiag bench", schema=99)])
    assert math.isnan(float(sick()["eval_loss"]))


if __name__ == "__main__":
    main()
