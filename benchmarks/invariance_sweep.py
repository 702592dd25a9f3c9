"""Padding invariance of every model type of which transformers can build a small model: on the CPU, random weights.

Each type gets a config of a few thousand to a few million parameters, one seed, float32, and a process of its own.
Types that ran before, by the results in the folder, are not run again.
Run: python benchmarks/invariance_sweep.py --out reports/invariance   (some minutes)
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import platform
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto

from mpsdiag import padding_invariance
from mpsdiag.serialization import jsonable

TABLES = {
    "causal": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "AutoModelForCausalLM", "left"),
    "encoder": ("MODEL_FOR_MASKED_LM_MAPPING_NAMES", "AutoModelForMaskedLM", "right"),
    "encoder-decoder": ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "AutoModelForSeq2SeqLM", "right"),
}
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim"), 64),
    **dict.fromkeys(("moe_intermediate_size", "ffn_hidden_size"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 256),
    **dict.fromkeys(("head_dim", "d_kv"), 8),
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "rotary_dim": 4,
    "attention_types": [[["global", "local"], 1]],
    "vocab_size": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
PARAMETERS = 30_000_000
SECONDS = 120
LENGTHS = (6, 11, 17, 24)


def small_model(kind: str, auto: str, changes: dict[str, Any]) -> Any:
    """The model of a type with a small config, or a sentence about why there is none."""
    config_class = transformers.AutoConfig.for_model(kind).__class__
    stock = config_class()
    config = config_class(**{name: value for name, value in {**SMALL, **changes}.items() if hasattr(stock, name)})
    make = getattr(transformers, auto).from_config
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in make(config).parameters())
    if count > PARAMETERS:
        raise ValueError(f"{count:,} parameters")
    torch.manual_seed(0)
    return make(config).eval()


def batch(side: str, *, decodes: bool) -> dict[str, torch.Tensor]:
    """Random tokens of four lengths, padded on a side; labels where a decoder needs them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        place = slice(ids.shape[1] - length, None) if side == "left" else slice(length)
        ids[row, place] = torch.randint(3, 256, (length,), generator=generator)
        mask[row, place] = 1
    labels = {"labels": torch.randint(3, 256, (len(LENGTHS), 5), generator=generator)} if decodes else {}
    return {"input_ids": ids, "attention_mask": mask, **labels}


def examine(group: str, kind: str, pipe: Any) -> None:
    """Send the result for one type: a dictionary with `error`, or with the invariance."""
    _, auto, side = TABLES[group]
    result: dict[str, Any] = {}
    for changes in ({}, {"num_key_value_heads": 4}):
        try:
            model = small_model(kind, auto, changes)
            found = padding_invariance(model, batch(side, decodes=group == "encoder-decoder"))
            result = jsonable(found.model_dump(exclude={"by_position"}))
        except Exception as problem:  # noqa: BLE001 - of a hundred libraries' own; it is written down
            first = (str(problem).splitlines() or [""])[0][:150]
            result = {"error": f"{type(problem).__name__}: {first}"}
        if result.get("verdict") in ("invariant", "varies"):
            break
    pipe.send(result)


def in_a_process(group: str, kind: str) -> dict[str, Any]:
    """Examine one type in a fork of this process, with a time limit."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=examine, args=(group, kind, theirs))
    process.start()
    theirs.close()
    try:
        result: dict[str, Any] = mine.recv() if mine.poll(SECONDS) else {"error": f"longer than {SECONDS} s"}
    except EOFError:
        result = {"error": "the process ended"}
    process.kill()
    process.join()
    return {"group": group, "type": kind, **result}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The types that vary, as a Markdown table."""
    lines = [
        "| type | left | right | other arrangements that fail | cause | restored by |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        results = {result["name"]: result for result in row["arrangements"]}
        sides = [_cell(results[side]) for side in ("left", "right")]
        others = [
            name for name, r in results.items() if not r["holds"] and r["counts"] and name not in ("left", "right")
        ]
        restored = [fix["name"] for fix in row["fixes"] if fix["restores"]]
        cells = [row["type"], *sides, ", ".join(others) or "-", row["cause"], ", ".join(restored) or "-"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _cell(result: dict[str, Any]) -> str:
    return "holds" if result["holds"] else f"{float(result['max_abs_diff']):.2g}"


def summary(rows: list[dict[str, Any]], group: str) -> list[str]:
    """The results for the types of one group."""
    mine = [row for row in rows if row["group"] == group]
    ran = [row for row in mine if row.get("verdict") in ("invariant", "varies")]
    varies = [row for row in ran if row["verdict"] == "varies"]
    causes = Counter(row["cause"] for row in varies)
    cured = sum(any(fix["restores"] for fix in row["fixes"]) for row in varies)
    side = TABLES[group][2]
    other = "right" if side == "left" else "left"
    fails_other = sum(not r["holds"] for row in ran for r in row["arrangements"] if r["name"] == other)
    counted = ", ".join(f"{cause} {number}" for cause, number in causes.most_common()) or "none"
    sentence = f"{len(mine)} types, {len(ran)} ran. Causes: {counted}; a fix restores {cured}."
    sentence += f" With padding on the {other}, {fails_other} differ."
    lines = [f"## {group}: {len(varies)} of {len(ran)} vary with padding on the {side}", "", sentence, ""]
    return lines + (table(varies) if varies else [])


def main() -> None:
    """Examine all types and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("reports/invariance"))
    parser.add_argument("--only", default="", help="Types whose name holds this text.")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    path = options.out / "results.jsonl"
    before = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    found = {(row["group"], row["type"]): row for row in before if row.get("verdict") in ("invariant", "varies")}
    wanted = [
        (group, kind)
        for group, (names, _, _) in TABLES.items()
        for kind in sorted(getattr(modeling_auto, names))
        if options.only in kind
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    for key in wanted:
        if key not in found:
            found[key] = in_a_process(*key)
            path.write_text("".join(json.dumps(row) + "\n" for row in found.values()), encoding="utf-8")
            print(*key, found[key].get("verdict") or found[key].get("error"), found[key].get("cause"), flush=True)
    rows = [found[key] for key in wanted]
    failed = [row for row in rows if row.get("verdict") not in ("invariant", "varies")]
    intro = (
        f"Random weights, float32, CPU ({platform.machine()}), torch {torch.__version__}, transformers "
        f"{transformers.__version__}; {len(LENGTHS)} sequences of {min(LENGTHS)} to {max(LENGTHS)} tokens. Made by "
        "`python benchmarks/invariance_sweep.py --out reports/invariance`; every figure is in `results.jsonl`. Numbers "
        "are the largest difference of logits at real positions from each sequence alone, in float64."
    )
    text = [
        "# Padding invariance of the model types of transformers",
        "",
        intro,
        "",
        *(line for group in TABLES for line in [*summary(rows, group), ""]),
        f"## Not examined: {len(failed)}",
        "",
        "Configs that are not small enough, or models that need more than token ids.",
        "",
        *(f"- {row['group']} {row['type']}: {row.get('error') or row.get('reason')}" for row in failed),
    ]
    (options.out / "README.md").write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
