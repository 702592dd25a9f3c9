"""The site is built strictly; its links lead somewhere; every cause has a page."""

import importlib.util
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

ROOT = Path(__file__).parent.parent.parent


def test_every_cause_has_a_row_and_the_examples_show_what_they_are_named_after():
    from mpsdiag.tracing.origin import CAUSES

    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "trace.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(CAUSES)
    shown = runpy.run_path(str(ROOT / "docs" / "causes.py"))
    examples = [cause for cause in CAUSES if shown["example"](cause)]
    assert len(examples) == 8
    assert {cause: shown["answer"](cause)[0] for cause in examples} == {cause: cause for cause in examples}


class Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in {"href", "src"} and value:
                self.found.append(value)
            if name == "id":
                self.ids.add(value)


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed")
def test_the_site_is_built_and_every_link_leads_somewhere(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in tmp_path.rglob("*.html")}
    assert len(pages) > 40
    broken = []
    for path, links in pages.items():
        for link in links.found:
            if re.match(r"[a-z]+:|//", link) or path.name == "404.html":
                continue
            place, anchor = urldefrag(link)
            target = (path.parent / unquote(place)).resolve() if place else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (anchor and target in pages and anchor not in pages[target].ids):
                broken.append((str(path.relative_to(tmp_path)), link))
    assert broken == []
