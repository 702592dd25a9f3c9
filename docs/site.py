"""Pages of the site made from the program: one for each command (its help), known defect and cause of trace."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent


def command_pages() -> Iterator[tuple[str, str]]:
    """The help of every command, as its parser prints it."""
    from typer.main import get_command
    from typer.testing import CliRunner

    from mpsdiag.cli.main import app

    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        text = CliRunner().invoke(app, [name, "--help"], prog_name="mpsdiag", env={"COLUMNS": "88"}).stdout
        summary = (command.help or "").partition("\n\n")[0].replace("\n", " ")
        yield f"commands/{name}.md", f"# mpsdiag {name}\n\n{summary}\n\n```text\n{text.rstrip()}\n```\n"


def defect_pages() -> Iterator[tuple[str, str]]:
    """A page for each probe of the catalogue, and the list of them."""
    from mpsdiag.probes.known import CATALOGUE

    rows = ["| probe | what it is | torch on MPS | affects |", "|---|---|---|---|"]
    for probe in CATALOGUE.values():
        rows.append(f"| [{probe.id}]({probe.id}.md) | {probe.title} | {probe.where} | {probe.hits} |")
        links = "\n".join(f"- <{link}>" for link in probe.upstream) or "- none"
        commands = "\n".join(probe.remedy.commands)
        text = (
            f"# {probe.id}: {probe.title}\n\n{probe.symptom}\n\n"
            f"- torch on MPS: {probe.where}\n- affects: {probe.hits}\n- fixed in: {probe.fixed or 'not yet'}\n\n"
            f"## What to do\n\n{probe.remedy.text}\n\n```\n{commands or f'mpsdiag check {probe.id}'}\n```\n\n"
            f"Probe it: `mpsdiag check {probe.id}`.\n\n## Upstream\n\n{links}\n"
        )
        yield f"defects/{probe.id}.md", text
    intro = "# Known defects\n\nWhat `mpsdiag check --level 3` probes. The map was emulated, not measured.\n"
    kept = (ROOT / "reports" / "defects" / "README.md").read_text(encoding="utf-8").split("\n\n")
    legend = "\n\n".join(part for part in kept if part.startswith(("**B**", "The cells hold")))
    picture = f"\n![torch release x defect](map.svg)\n\n{legend}\n\n"
    yield "defects/index.md", intro + picture + "\n".join(rows) + "\n"


def cause_pages() -> Iterator[tuple[str, str]]:
    """A page for each cause in the table of docs/trace.md, with an example and the answer of mpsdiag."""
    shown = runpy.run_path(str(ROOT / "docs" / "causes.py"))
    table = (ROOT / "docs" / "trace.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", table, re.MULTILINE)
    for name, what, how in rows:
        text = f"# {name}\n\n{what[:1].upper()}{what[1:]}.\n\nHow it is recognized: {how}.\n"
        if code := shown["example"](name):
            answer = shown["answer"](name)[1]
            text += f"\n## An example\n\n```python\n{code}print(origin)\n```\n\n```text\n{answer.rstrip()}\n```\n"
        yield f"causes/{name}.md", f"{text}\n[All causes](index.md); [how to trace](../trace.md).\n"
    lines = [f"| [{name}]({name}.md) | {what} |" for name, what, _ in rows]
    intro = "# Causes\n\nWhy a value is not finite, as `mpsdiag trace` and `mpsdiag check` name it.\n\n"
    yield "causes/index.md", intro + "| cause | what it is |\n|---|---|\n" + "\n".join(lines) + "\n"


def on_files(files: Files, *, config: Any) -> Files:
    """Add the generated pages and what the kept ones link to outside of docs/."""
    for name, text in (*command_pages(), *defect_pages(), *cause_pages()):
        files.append(File.generated(config, name, content=text))
    svg = ROOT / "reports" / "defects" / "defects.svg"
    files.append(File.generated(config, "defects/map.svg", abs_src_path=str(svg)))
    for path in sorted((ROOT / "reports").glob("bisect-*/report.md")):
        files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links that leave docs/ in the repository stay inside on the site."""
    return re.sub(r"\]\(\.\./(reports/bisect-[^)]+)\)", r"](\1)", markdown)
