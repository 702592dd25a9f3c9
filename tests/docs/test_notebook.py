"""The notebook runs, and its kept outputs are what it gives."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"


def plain(outputs):
    """What an output says, numbers and versions as #, however wide they are."""
    texts = []
    for one in outputs:
        data = one.get("data", {"text/plain": one.get("text", "")})
        texts.append(re.sub(r"[+-]?\d[\d.]*(e-?\d+)?", "#", " ".join(data["text/plain"].split())))
    return texts


@pytest.mark.needs(transformers="4.56")  # set_attn_implementation
def test_the_notebook_gives_what_it_shows():
    spec = importlib.util.spec_from_file_location("notebook", DOCS / "notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kept = json.loads((DOCS / "notebook.ipynb").read_text(encoding="utf-8"))
    made = module.notebook()
    assert [cell["source"] for cell in kept["cells"]] == [cell["source"] for cell in made["cells"]]
    codes = [
        (old["outputs"], new["outputs"])
        for old, new in zip(kept["cells"], made["cells"], strict=True)
        if new["cell_type"] == "code"
    ]
    assert [plain(old) for old, _ in codes] == [plain(new) for _, new in codes]
    check, traced, fixed, table, report = (new for _, new in codes)
    assert check[0]["data"]["text/plain"].startswith("<Diagnosis: affected: EMULATED MPS of torch 2.8")
    assert "<table" in check[0]["data"]["text/html"]
    assert "dead_rows" in traced[0]["data"]["text/plain"]
    assert fixed[0]["text"] == "None\n"
    assert "safe_sdpa" in table[0]["data"]["text/html"]
    assert report[0]["data"]["text/plain"].startswith("<Report: Affected")
