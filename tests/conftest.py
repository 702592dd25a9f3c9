"""What every test stands on: no network, one thread, and the markers of machines that are not there."""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell that starts this in the background has it ignore Ctrl-C, and every child of it too.
signal.signal(signal.SIGINT, signal.default_int_handler)

WIKITEXT = Path(__file__).resolve().parents[2] / "shared" / "data" / "wikitext-2"


def pytest_collection_modifyitems(items):
    wanted = {marker for item in items for marker in ("mps", "cuda") if item.get_closest_marker(marker)}
    if not wanted:
        return
    from mpsdiag.device import available

    for marker in wanted:
        if available(marker):
            continue
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"no {marker} device here"))


@pytest.fixture(scope="session")
def wikitext():
    if not WIKITEXT.is_dir():
        pytest.skip("the WikiText-2 text is not beside this checkout")
    return WIKITEXT
