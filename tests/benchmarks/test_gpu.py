"""benchmarks/gpu.py from end to end on the CPU, with small sizes: its figures mean nothing here, its shape does."""

import argparse
import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def gpu():
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("gpu")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def settings(tmp_path):
    return argparse.Namespace(device="cpu", dtype="bfloat16", small=True, scratch=str(tmp_path))


def test_the_cpu_gives_zeros_for_a_fully_masked_row_and_the_mean_for_finite_masks(gpu, settings):
    found = gpu.dead_rows(settings)
    seen = {(row["mask"], row["dtype"]): row["dead"] for row in found["rows"]}
    assert {kind for (mask, _), kind in seen.items() if mask != "finfo.min"} == {"zeros"}
    assert seen["finfo.min", "float32"] == "mean"
    assert all(row["error_of_other_rows"] < 0.05 for row in found["rows"])
    assert all(row["finite_gradients"] for row in found["rows"] if row["grad"])
    assert found["check"]["verdict"] == "not_affected"


def test_a_nan_in_a_fully_masked_row_is_named(gpu, settings, monkeypatch):
    stock = torch.nn.functional.scaled_dot_product_attention

    def broken(query, key, value, mask):
        output = stock(query, key, value, mask)
        none = ~mask.any(-1, keepdim=True) if mask.dtype == torch.bool else torch.tensor([False])
        return output.masked_fill(none, math.nan)

    monkeypatch.setattr(gpu.F, "scaled_dot_product_attention", broken)
    kinds = {row["dead"] for row in gpu._dead_row_cases(settings) if row["mask"] == "bool"}
    assert kinds == {"NaN"}


@pytest.mark.parametrize(
    ("part", "figures"),
    [
        ("fixes", {"safe_sdpa / sdpa", "eager / safe_sdpa", "synchronizations safe_sdpa - sdpa"}),
        ("trainer", {"mps_safe / standard"}),
        ("trace", {"traced / bare"}),
    ],
)
def test_every_part_gives_its_figures(gpu, settings, part, figures):
    found = gpu.PARTS[part](settings)["figures"]
    assert figures <= {figure["figure"] for figure in found} <= set(gpu.GOALS)
    assert all(math.isfinite(figure["value"]) for figure in found)
    waits = [figure["value"] for figure in found if figure["figure"].startswith("synchronizations")]
    assert not any(waits)


def test_what_waits_for_the_device_is_counted(gpu):
    with gpu.Waits() as waits:
        torch.ones(3).sum().item()
        torch.ones(3).nonzero()
    assert waits.seen == {"_local_scalar_dense": 1, "nonzero": 1}


def test_parts_run_apart_and_one_that_is_too_slow_is_named(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(gpu.LIMITS, "trace", 0.01)
    words = ["gpu.py", "--small", "--device", "cpu", "--out", str(tmp_path), "--parts", "trainer", "trace"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 1
    page = capsys.readouterr().out
    assert page == (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "This part took longer than 0.01 s" in page
    assert "mps_safe / standard" in page
    assert "a trial of the script" in page
    kept = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert kept["about"]["device"] == "cpu"
    assert len(kept["parts"]["trainer"]["figures"][0]["raw"]["ours"]) == 3
