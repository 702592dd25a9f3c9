"""Write docs/notebook.ipynb, run as a notebook runs it: python docs/notebook.py. A test runs the kept one again."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parent / "notebook.ipynb"

CELLS = (
    "# From a NaN to the fix\n\nAll of this runs on a CPU: MPS of torch 2.8 is emulated. On a Mac, drop `emulate`.",
    "## Is it this machine?",
    """import mpsdiag

diagnosis = mpsdiag.check(emulate="2.8")
diagnosis""",
    "## Which operation gives the first NaN?\n\nA left-padded batch of two sequences, and a model with random weights.",
    """import torch
from transformers import AutoModelForCausalLM, GPT2Config

torch.manual_seed(0)
config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=None, eos_token_id=None)
model = AutoModelForCausalLM.from_config(config).eval()
batch = {
    "input_ids": torch.randint(1, 64, (2, 8)),
    "attention_mask": torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1] * 8]),
}
with mpsdiag.emulate_mps("2.8"):
    origin = mpsdiag.trace(model, batch)
origin""",
    "## Does the fix resolve it?",
    """model.set_attn_implementation("safe_sdpa")
with mpsdiag.emulate_mps("2.8"):
    print(mpsdiag.trace(model, batch))""",
    "## The report\n\nA small matrix, each cell in its own process; `to_pandas()` gives every cell as one row.",
    """report = mpsdiag.bench(
    emulate=["2.8"],
    attn_implementation=["sdpa", "eager", "safe_sdpa"],
    trainer=["standard"],
    padding_side=["left"],
    device=["cpu"],
    rounds=0,
    out="results",
)
report.to_pandas()[["attn_implementation", "status", "eval_loss", "loss_moved_by", "mark"]]""",
    "report",
)


def run(source: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a cell; gives its outputs: what it printed, and the value of its last line."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    value = None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), names)  # noqa: S102 - our own cells
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)  # noqa: S307 - likewise
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue()})
    if value is not None:
        data = {"text/plain": repr(value)}
        if hasattr(value, "_repr_html_"):
            data["text/html"] = value._repr_html_()
        outputs.append({"output_type": "execute_result", "data": data, "metadata": {}})
    return outputs


def notebook() -> dict[str, Any]:
    """Run every cell in a folder of its own, and keep the outputs."""
    names: dict[str, Any] = {"__name__": "__notebook__"}
    cells: list[dict[str, Any]] = []
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for number, source in enumerate(CELLS):
                common = {"id": f"cell-{number}", "metadata": {}, "source": source}
                if source.startswith(("import", "model", "report")):
                    outputs = run(source, names)
                    count = sum(cell["cell_type"] == "code" for cell in cells) + 1
                    for one in outputs:
                        if one["output_type"] == "execute_result":
                            one["execution_count"] = count
                    cells.append({**common, "cell_type": "code", "execution_count": count, "outputs": outputs})
                else:
                    cells.append({**common, "cell_type": "markdown"})
        finally:
            os.chdir(here)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


if __name__ == "__main__":
    NOTEBOOK.write_text(json.dumps(notebook(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
