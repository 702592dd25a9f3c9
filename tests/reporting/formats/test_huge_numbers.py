"""Legal but huge numbers in a journal: every format is still written."""

import json
from pathlib import Path

import pytest

from mpsdiag.benching.journal.journal import parse_journal
from mpsdiag.reporting.formats.export import text_of, write_folder
from mpsdiag.reporting.story.report import assemble

LINES = (Path(__file__).parents[2] / "data" / "every_end.jsonl").read_text(encoding="utf-8").splitlines()
HUGE = {
    "numbers": {"eval_loss": 1e308, "loss_moved_by": -1e308, "reference_eval_loss": 1e308, "bound": 1e-320},
    "rows": {"dead_rows": 10**30, "real_tokens": 10**30, "sdpa_calls": 10**30, "nonfinite_batches": 10**30},
    "memory": {"peak_process_memory": 10**30, "peak_device_memory": 10**30},
    "losses": {"train_losses": [1e308] * 100_000, "eval_losses": [1e308] * 100_000},
}


@pytest.mark.parametrize("kind", HUGE)
def test_huge_numbers_cost_no_format(kind, tmp_path):
    lines = []
    for line in map(json.loads, LINES):
        if line.get("measured"):
            line["measured"] |= HUGE[kind]
        lines.append(json.dumps(line))
    story = assemble([parse_journal("\n".join([*lines, ""]).encode(), "journal")])
    for form in ("terminal", "markdown", "csv", "json"):
        assert text_of(story, form)
    failed = []
    write_folder(story, tmp_path, failed.append)
    assert not failed
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")
