"""Pages of the site that are made from the program: one a command (its help) and one a known defect (the catalogue)."""

from __future__ import annotations

import re
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
    from mpsdiag.probes import CATALOGUE

    rows = ["| probe | what it is | torch on MPS | hits |", "|---|---|---|---|"]
    for probe in CATALOGUE.values():
        rows.append(f"| [{probe.id}]({probe.id}.md) | {probe.title} | {probe.where} | {probe.hits} |")
        links = "\n".join(f"- <{link}>" for link in probe.upstream) or "- none"
        commands = "\n".join(probe.remedy.commands)
        text = (
            f"# {probe.id}: {probe.title}\n\n{probe.symptom}\n\n"
            f"- torch on MPS: {probe.where}\n- hits: {probe.hits}\n- fixed in: {probe.fixed or 'not yet'}\n\n"
            f"## What to do\n\n{probe.remedy.text}\n\n```\n{commands or f'mpsdiag check {probe.id}'}\n```\n\n"
            f"Probe it: `mpsdiag check {probe.id}`.\n\n## Upstream\n\n{links}\n"
        )
        yield f"defects/{probe.id}.md", text
    intro = "# Known defects\n\nWhat `mpsdiag check --level 3` probes. The map was emulated, not measured.\n"
    yield "defects/index.md", intro + "\n![torch release x defect](map.svg)\n\n" + "\n".join(rows) + "\n"


def on_files(files: Files, *, config: Any) -> Files:
    """Add the generated pages and what the kept ones link to outside of docs/."""
    for name, text in (*command_pages(), *defect_pages()):
        files.append(File.generated(config, name, content=text))
    svg = ROOT / "reports" / "defects" / "defects.svg"
    files.append(File.generated(config, "defects/map.svg", abs_src_path=str(svg)))
    for path in sorted((ROOT / "reports").glob("bisect-*/report.md")):
        files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links that leave docs/ in the repository stay inside on the site."""
    return re.sub(r"\]\(\.\./(reports/bisect-[^)]+)\)", r"](\1)", markdown)
