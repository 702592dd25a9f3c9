"""What the GitHub Action runs: mpsdiag, then the job summary, annotations, and the exit code that the job gets."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

FAILS = {"affected": {1, 2, 130}, "undecided": {1, 2, 3, 130}, "never": {2, 130}}
SUMMARY_LIMIT = 2**20
"""Bytes that GitHub takes for the summary of a step."""


def mpsdiag(*words: str, answer: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command; what it says on stderr goes to the log, and so does stdout where it is not the answer."""
    command = [sys.executable, "-m", "mpsdiag", *words]
    return subprocess.run(command, stdout=subprocess.PIPE if answer else None, text=True, check=False)


def append(variable: str, text: str) -> None:
    """Add to one of the files that GitHub reads after the step."""
    if path := os.environ.get(variable):
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(text)


def annotate(level: str, message: str, **where: object) -> None:
    """Write a workflow command: GitHub shows it, and puts it beside the line where `file` and `line` are given."""
    escaped = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
    in_values = escaped | str.maketrans({":": "%3A", ",": "%2C"})
    values = ",".join(f"{name}={str(value).translate(in_values)}" for name, value in where.items())
    sys.stdout.write(f"::{level} {values}::{message.translate(escaped)}\n")


def in_workspace(file: str) -> str:
    """A path as GitHub names it: from the root of the checkout, where it is in it."""
    path, root = Path(file).resolve(), Path(os.environ.get("GITHUB_WORKSPACE", ".")).resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else file


def watched_script(folder: Path, words: list[str]) -> tuple[int, str, str]:
    """Run a script with `mpsdiag run --trace`, and annotate its lines; exit code, headline and Markdown."""
    source = folder / "run.json"
    files = ["--json", str(source), "--html", str(folder / "run.html")]
    done = mpsdiag("run", "--trace", *files, *words, answer=False)
    if not source.exists():
        return done.returncode, "", ""
    from mpsdiag.tracing.process.watched import ScriptReport

    report = ScriptReport.model_validate_json(source.read_bytes())
    for one in report.findings:
        if one.file:
            where = {"file": in_workspace(one.file), "line": one.line}
            annotate("warning", one.summary, **where, title=f"mpsdiag: {one.cause}")
    nothing = f"nothing found in {report.watched.forwards} forwards"
    headline = f"{report.findings[0].cause}: {report.findings[0].summary}" if report.findings else nothing
    return done.returncode, headline, report.to_markdown()


def answered(command: str, folder: Path, words: list[str]) -> tuple[int, str, str]:
    """Run `check` or `bench`; exit code, headline and Markdown, both empty where it gave no answer."""
    source = folder / f"{command}.json"
    where = ["--html", str(folder / "check.html")] if command == "check" else ["--out", str(folder)]
    done = mpsdiag(command, "--json", *where, *words)
    if not done.stdout:
        return done.returncode, "", ""
    source.write_text(done.stdout, encoding="utf-8")
    found = json.loads(done.stdout)
    rendered = mpsdiag("report", str(source if command == "check" else folder), "--format", "markdown")
    headline = found.get("headline") or f"{found['verdict'].replace('_', ' ')}: {found['reason']}"
    return done.returncode, headline, rendered.stdout


def main() -> int:
    """Run, report, and choose the exit code."""
    command, fail_on = os.environ.get("COMMAND", "check"), os.environ.get("FAIL_ON", "affected")
    if command not in {"check", "bench", "run"} or fail_on not in FAILS:
        annotate("error", "command is check, bench or run; fail-on is affected, undecided or never", title="mpsdiag")
        return 2
    words = shlex.split(os.environ.get("ARGS", ""))
    folder = Path(os.environ.get("RUNNER_TEMP", ".")) / "mpsdiag-report"
    folder.mkdir(parents=True, exist_ok=True)
    if command == "run":
        code, headline, summary = watched_script(folder, words)
    else:
        code, headline, summary = answered(command, folder, words)
    if headline:
        append("GITHUB_STEP_SUMMARY", summary.encode()[:SUMMARY_LIMIT].decode(errors="ignore"))
        annotate("notice" if code == 0 else "warning", headline, title=f"mpsdiag {command}")
    append("GITHUB_OUTPUT", f"exit-code={code}\nreport={folder}\n")
    own = command == "run" and code != 1  # the script's own exit code, where nothing was found
    return code if own or code in FAILS[fail_on] else 0


if __name__ == "__main__":
    sys.exit(main())
