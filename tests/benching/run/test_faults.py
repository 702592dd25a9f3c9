"""Of twelve cells six go wrong, each in its own way; the others never notice."""

import json

from fake_cells import FAULTS

from mpsdiag.benching.journal.journal import read_journal
from mpsdiag.benching.plan.matrix import MatrixSpec, changed
from mpsdiag.benching.plan.request import BenchRequest
from mpsdiag.benching.run.bench import prepare
from mpsdiag.benching.run.launch import LIGHT, Isolation

ENDS = {
    "abort": ("crash", "SIGABRT"),
    "segfault": ("crash", "SIGSEGV"),
    "hang": ("timeout", None),
    "memory": ("oom", None),
    "silent": ("crash", None),
    "megabyte": ("ok", None),
}


def test_twelve_cells_with_six_faults_make_twelve_true_lines_and_exit_code_3(tmp_path, quiet):
    spec = changed(
        MatrixSpec(),
        {
            "seed": list(range(12)),
            "attn_implementation": ["sdpa"],
            "trainer": ["standard"],
            "padding_side": ["left"],
            "device": ["cpu"],
            "rounds": 0,
            "time_limit": 4.0,
        },
    )
    session = prepare(
        BenchRequest(spec, tmp_path, function="fake_cells:faulty", isolation=Isolation(preload=LIGHT), jobs=2)
    )
    outcome = session.run(quiet)
    assert session.exit_code(outcome) == 3
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert len(lines) == 13
    assert all(json.loads(line)["schema"] == 3 for line in lines)
    found = {r.cell.seed: (r.status, r.signal) for r in read_journal(tmp_path).records}
    assert found == {seed: ENDS[FAULTS[seed]] if seed in FAULTS else ("ok", None) for seed in range(12)}
    assert "crash" in " ".join(session.closing(outcome))
    assert session.summary(outcome)["rounds_by_status"] == {"ok": 7, "crash": 3, "timeout": 1, "oom": 1}
    # A second run finds everything done and changes nothing; a retry runs what was asked for, and only that.
    before = (tmp_path / "journal.jsonl").read_bytes()
    assert session.run(quiet).fresh == 0
    assert (tmp_path / "journal.jsonl").read_bytes() == before
    again = prepare(
        BenchRequest(
            spec, tmp_path, retry=frozenset({"oom"}), function="fake_cells:quick", isolation=Isolation(preload=LIGHT)
        )
    )
    outcome = again.run(quiet)
    assert (outcome.fresh, again.exit_code(outcome)) == (1, 3)
    assert {r.cell.seed: r.status for r in read_journal(tmp_path).records}[7] == "ok"
