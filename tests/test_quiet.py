"""What is kept back, and the downloads that are not."""

import http.server
import sys
import threading
from functools import partial

import pytest

from mpsdiag.quiet import no_bars


@pytest.fixture
def address(tmp_path):
    """A server of a file of 24 MiB."""
    (tmp_path / "weights").write_bytes(bytes(24 << 20))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/weights"
        server.shutdown()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_download_is_shown_in_our_bar_on_a_terminal(address, tmp_path, monkeypatch, capsys, terminal):
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import are_progress_bars_disabled

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    seen = []
    with no_bars(seen.append), (tmp_path / "got").open("wb") as file:
        http_get(address, file, expected_size=24 << 20, displayed_filename="weights")
    assert capsys.readouterr().err == ""
    assert not are_progress_bars_disabled()
    assert (tmp_path / "got").stat().st_size == 24 << 20
    if terminal:
        assert seen[-1].startswith("downloading weights, MiB ")
        assert seen[-1].endswith(" of 24")
    else:
        assert seen == []
