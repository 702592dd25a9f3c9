"""The GitHub Action: what it runs, run here as GitHub runs it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


def act(folder, **inputs):
    """Run its main step; gives (process, job summary, outputs)."""
    summary, outputs = folder / "summary.md", folder / "output"
    environment = {
        **os.environ,
        "GITHUB_ACTION_PATH": str(ROOT),
        "GITHUB_STEP_SUMMARY": str(summary),
        "GITHUB_OUTPUT": str(outputs),
        "RUNNER_TEMP": str(folder),
        **inputs,
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / ".github" / "action.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    found = dict(line.split("=", 1) for line in outputs.read_text().splitlines()) if outputs.exists() else {}
    return done, summary.read_text(encoding="utf-8") if summary.exists() else "", found


def as_github_renders_it(summary):
    """The HTML of a second Markdown parser; nothing in it is a tag or a link that the text brought along."""
    page = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(summary)
    assert not re.search(
        r"<(?!/?(p|h\d|strong|em|code|pre|table|thead|tbody|tr|t[hd]|ul|ol|li|details|summary|br)\b)", page
    )
    return page


def test_inputs_reach_no_shell_but_as_variables():
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
        assert "@" not in step.get("uses", "") or len(step["uses"].partition("@")[2]) == 40
    step = next(one for one in ACTION["runs"]["steps"] if one.get("id") == "run")
    assert set(step["env"]) == {"COMMAND", "ARGS", "FAIL_ON"}


def test_a_check_that_finds_something(tmp_path):
    done, summary, outputs = act(tmp_path, ARGS="--emulate 2.8 --level 1")
    assert done.returncode == 1
    assert outputs["exit-code"] == "1"
    assert "::warning title=mpsdiag check::affected: " in done.stdout
    assert {path.name for path in Path(outputs["report"]).iterdir()} == {"check.html", "check.json"}
    assert summary.startswith("**mpsdiag check: affected: EMULATED MPS of torch 2.8")
    assert len(summary) < 65_536
    assert as_github_renders_it(summary).count("<table>") == summary.count("\n|---") > 0


@pytest.mark.parametrize(
    ("words", "fail_on", "code"),
    [("--emulate 2.9 --level 1", "affected", 0), ("--emulate 2.8 --level 1", "never", 0), ("--level 9", "never", 2)],
)
def test_when_the_job_fails(tmp_path, words, fail_on, code):
    assert act(tmp_path, ARGS=words, FAIL_ON=fail_on)[0].returncode == code


def test_a_finding_in_a_script_is_put_beside_its_line(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\n\nmodel = torch.nn.Linear(2, 2)\nprint('begun')\n"
        "loss = model(torch.tensor([[1.0, float('nan')]])).sum()\n"
    )
    done, summary, outputs = act(tmp_path, COMMAND="run", ARGS=f"'{script}' --epochs 1", GITHUB_WORKSPACE=str(tmp_path))
    assert done.returncode == 1, done.stderr
    assert "begun" in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("::")]
    assert lines[0].startswith("::warning file=train.py,line=5,title=mpsdiag%3A bad_inputs::")
    assert lines[1].startswith("::warning title=mpsdiag run::bad_inputs: ")
    assert {path.name for path in Path(outputs["report"]).iterdir()} == {"run.html", "run.json"}
    assert summary.startswith("**mpsdiag run --trace: bad_inputs")
    assert as_github_renders_it(summary).count("<table>") == summary.count("\n|---") > 0


def test_a_script_that_fails_by_itself_fails_the_job(tmp_path):
    (tmp_path / "train.py").write_text("raise SystemExit(7)")
    words = str(tmp_path / "train.py")
    assert act(tmp_path, COMMAND="run", ARGS=words, FAIL_ON="never")[0].returncode == 7


def test_inputs_that_do_not_exist_are_refused(tmp_path):
    done, _, _ = act(tmp_path, COMMAND="rm")
    assert done.returncode == 2
    assert done.stdout.startswith("::error title=mpsdiag::")


def test_a_matrix_with_a_gate(tmp_path):
    few = "--max-length 128 --max-steps 1 --eval-max-batches 1 --rounds 0 --padding-side left --trainer standard"
    words = f"--device cpu --emulate 2.8 {few} --attn-implementation sdpa --fail-if 'any nan in sdpa'"
    done, summary, _ = act(tmp_path, COMMAND="bench", ARGS=words)
    assert done.returncode == 1, done.stderr
    assert "# mpsdiag report" in summary
