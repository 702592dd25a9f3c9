"""The page in a real headless Chromium, driven through chromedriver's own protocol (W3C WebDriver over HTTP)."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from mpsdiag.reporting.formats import html
from mpsdiag.reporting.pictures import plots

pytestmark = pytest.mark.browser

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1200,1000",
]


class Browser:
    """One session of chromedriver."""

    def __init__(self, address: str, chromium: str, profile: str) -> None:
        self._address = address
        wanted = {
            "goog:chromeOptions": {"binary": chromium, "args": [*FLAGS, f"--user-data-dir={profile}"]},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        started = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{started['sessionId']}"

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 - the loopback address
            self._address + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - likewise
            return json.load(answer)["value"]

    def open(self, address: str) -> None:
        self._send("POST", f"{self._session}/url", {"url": address})

    def run(self, script: str) -> Any:
        return self._send("POST", f"{self._session}/execute/sync", {"script": script, "args": []})

    def log(self, kind: str) -> list[dict[str, Any]]:
        return self._send("POST", f"{self._session}/se/log", {"type": kind})

    def devtools(self, command: str, **parameters: Any) -> Any:
        body = {"cmd": command, "params": parameters}
        return self._send("POST", f"{self._session}/goog/cdp/execute", body)

    def resize(self, width: int) -> None:
        """Give the page a width; a window has a least width, an emulated screen has not."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )

    def scheme(self, name: str) -> None:
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def requests(self) -> set[str]:
        """Addresses that were asked for since the last call; embedded data is none."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        asked = {
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        }
        return {address for address in asked if not address.startswith("data:")}

    def quit(self) -> None:
        self._send("DELETE", self._session)


def eventually(look: Callable[[], Any], enough: Callable[[Any], bool], seconds: float = 20.0) -> Any:
    """Look until it is enough, or the time is up; gives what was seen last."""
    end = time.monotonic() + seconds
    while not enough(seen := look()) and time.monotonic() < end:
        time.sleep(0.05)
    return seen


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium with its driver here; Debian has them as chromium and chromium-driver")
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        port = None
        for line in process.stdout:
            if found := re.search(r"started successfully on port (\d+)", line):
                port = found.group(1)
                break
        assert port, "chromedriver did not start"
        started = Browser(f"http://127.0.0.1:{port}", chromium, str(tmp_path_factory.mktemp("profile")))
        try:
            yield started
        finally:
            started.quit()
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory, stories, hostile):
    """Serves the pages from the loopback address and remembers what was asked of it."""
    folder = tmp_path_factory.mktemp("site")
    story = stories["both"]
    (folder / "report.html").write_text(html.render(story, plots.pictures(story)), encoding="utf-8")
    for kind in ("script", "attribute", "template", "close", "link"):
        (folder / f"{kind}.html").write_text(html.render(hostile(kind)), encoding="utf-8")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def page(browser, site):
    browser.log("browser")
    browser.requests()
    browser.resize(1200)
    browser.scheme("light")
    browser.open(f"{site}/report.html")
    return browser


def test_it_loads_without_an_error_and_asks_for_nothing_but_itself(page, site):
    assert page.run("return document.title") == "mpsdiag report"
    assert page.run("return document.querySelector('.verdict').textContent").startswith("Affected in 2 of 3 settings")
    assert page.run("return document.querySelectorAll('h2').length") >= 6
    page.run("document.querySelectorAll('details').forEach((one) => one.open = true)")
    assert page.log("browser") == []
    assert page.requests() == {f"{site}/report.html"}


COLUMN = """
const table = document.querySelector('#cost table');
const names = Array.from(table.tHead.rows[0].cells, (cell) => cell.textContent);
const column = names.indexOf('eval step');
const button = table.tHead.rows[0].cells[column].querySelector('button');
for (let press = 0; press < %d; press += 1) button.click();
return [
  table.tHead.rows[0].cells[column].getAttribute('aria-sort'),
  Array.from(table.tBodies[0].rows, (row) => row.cells[column].dataset.sort),
];
"""


def test_tables_sort_by_the_heading_that_is_pressed(page):
    aria, before = page.run(COLUMN % 0)
    assert aria is None
    aria, up = page.run(COLUMN % 1)
    assert aria == "ascending"
    assert [float(one) for one in up] == sorted(float(one) for one in before)
    assert up != before
    aria, down = page.run(COLUMN % 1)
    assert aria == "descending"
    assert [float(one) for one in down] == sorted((float(one) for one in before), reverse=True)


def test_what_was_not_measured_stays_at_the_end_either_way(page):
    script = COLUMN.replace("'eval step'", "'eval to baseline'")
    for _ in range(2):
        _, values = page.run(script % 1)
        assert values[-1] == "Infinity"


def test_every_table_can_be_sorted_by_keyboard(page):
    heads = page.run("return Array.from(document.querySelectorAll('table.sortable th'), (th) => th.innerHTML)")
    assert heads
    assert all(head.startswith('<button type="button">') for head in heads)


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_the_page_is_never_wider_than_the_screen(page, width):
    page.resize(width)
    page.run("document.querySelectorAll('details').forEach((one) => one.open = true)")
    inner, outer = page.run("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert outer == width
    assert inner <= outer


@pytest.mark.parametrize(("scheme", "colour"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(13, 17, 23)")])
def test_page_and_pictures_follow_the_theme(page, scheme, colour):
    page.scheme(scheme)
    assert page.run("return getComputedStyle(document.body).backgroundColor") == colour
    script = """
    return Array.from(document.querySelectorAll('picture'), (one) => [
      one.querySelector('img').currentSrc === one.querySelector('source').srcset,
      one.querySelector('img').naturalWidth,
    ]);
    """

    def follow(pictures: list[list[Any]]) -> bool:
        return bool(pictures) and all(dark == (scheme == "dark") and width > 0 for dark, width in pictures)

    # The browser decodes the drawings of the other theme after it has painted the page.
    assert follow(eventually(lambda: page.run(script), follow))


SEEN = """
const luminance = (text) => {
  const parts = text.match(/[\\d.]+/g).map(Number).slice(0, 3).map((one) => {
    const part = one / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
};
const ground = (node) => {
  for (let one = node; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if (!colour.endsWith(', 0)')) return colour;
  }
  return 'rgb(255, 255, 255)';
};
const poor = [];
for (const node of document.querySelectorAll('body *')) {
  const own = Array.from(node.childNodes).some((one) => one.nodeType === 3 && one.textContent.trim());
  if (!own || node.tagName === 'SCRIPT') continue;
  const [high, low] = [luminance(getComputedStyle(node).color), luminance(ground(node))].sort((a, b) => b - a);
  if ((high + 0.05) / (low + 0.05) < 4.5) poor.push([node.tagName, node.className, node.textContent.slice(0, 40)]);
}
return poor;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(page, scheme):
    page.scheme(scheme)
    page.run("document.querySelectorAll('details').forEach((one) => one.open = true)")
    assert page.run(SEEN) == []


def names(node: dict[str, Any]) -> list[str]:
    return [node["nodeName"], *(name for child in node.get("children", ()) for name in names(child))]


def test_without_scripts_every_table_is_there(page, site):
    page.devtools("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(f"{site}/report.html")
        # Without scripts the driver cannot tell when the page is there. One call for the whole tree, since between
        # two the browser may number its nodes anew.
        found = eventually(
            lambda: names(page.devtools("DOM.getDocument", depth=-1)["root"]), lambda tree: "FOOTER" in tree
        )
    finally:
        page.devtools("Emulation.setScriptExecutionDisabled", value=False)
    assert found.count("TABLE") >= 10
    assert "BUTTON" not in found


@pytest.mark.parametrize("kind", ["script", "attribute", "template", "close", "link"])
def test_hostile_names_run_nothing_and_load_nothing(page, site, kind):
    page.requests()
    page.open(f"{site}/{kind}.html")
    assert page.log("browser") == []
    assert page.requests() == {f"{site}/{kind}.html"}
    assert page.run("return document.scripts.length") == 1
    assert page.run("return document.querySelectorAll('[onmouseover], [onerror], img, iframe').length") == 0
