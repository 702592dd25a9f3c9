from __future__ import annotations

from html.parser import HTMLParser

import pytest

from mpsdiag.reporting.formats import html
from mpsdiag.reporting.pictures import plots

VOID = {"meta", "link", "img", "source", "br"}


class Page(HTMLParser):
    """Reads a page, and finds what must not be in one: unbalanced tags, handlers, foreign addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts = 0
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        for name, value in attributes:
            assert not name.startswith("on"), (tag, name)
            assert name != "style"
            if name == "id":
                assert value not in self.ids
                self.ids.add(value)
            if name in {"href", "src", "srcset"}:
                assert value.startswith(("#", "data:")), value
                self.links.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_is_whole_and_stands_alone(stories):
    page = Page(html.render(stories["every_end"], plots.pictures(stories["every_end"])))
    assert page.scripts == 1
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids


def test_hostile_texts_stay_text(nasty):
    page = Page(html.render(nasty))
    assert page.scripts == 1


def test_a_script_in_a_name_is_shown_not_run(hostile):
    page = Page(html.render(hostile("script")))
    assert any("<script>alert(1)</script>" in text for text in page.texts)


def test_a_megabyte_of_text_is_cut(hostile):
    assert len(html.render(hostile("megabyte"))) < 300_000


def test_the_policy_names_the_hash_of_the_script_that_is_in_the_page(stories):
    import base64
    import hashlib
    import re

    text = html.render(stories["every_end"])
    for tag in ("script", "style"):
        body = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL).group(1)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2.2, relative luminance: 4.5 is its level AA for text."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def schemes() -> list[dict[str, str]]:
    import re

    blocks = re.findall(r":root \{(.*?)\}", html._source("report.css"), re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks]


@pytest.mark.parametrize("number", [0, 1], ids=["light", "dark"])
def test_texts_contrast_with_what_they_stand_on(number):
    colours = schemes()[number]
    for back in ("page", "raised"):
        for text in ("text", "muted", "link"):
            assert contrast(colours[text], colours[back]) >= 4.5, (text, back)
    for tone in ("good", "moved", "bad", "broken"):
        assert contrast(colours[tone], colours[f"{tone}-back"]) >= 4.5, tone
        assert contrast(colours["text"], colours[f"{tone}-back"]) >= 4.5, tone


@pytest.mark.parametrize("theme", ["LIGHT", "DARK"])
def test_drawings_contrast_with_their_page(theme):
    from mpsdiag.reporting.pictures import drawing

    colours = getattr(drawing, theme)
    for one in (*colours.tones.values(), *colours.lines, colours.text, colours.muted):
        assert contrast(one, colours.page) >= 4.5, one
