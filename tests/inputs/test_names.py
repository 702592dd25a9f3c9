import socket

import pytest
from huggingface_hub import constants

from mpsdiag.inputs import names as hub


@pytest.fixture
def no_proxy(monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_a_host_that_answers_and_one_that_does_not(no_proxy):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert hub.reachable(f"http://127.0.0.1:{port}/x")
    assert not hub.reachable(f"http://127.0.0.1:{port}/x")
    assert not hub.reachable("https://no-such-host.invalid")


def test_behind_a_proxy_nothing_is_presumed(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:1")
    assert hub.reachable("https://no-such-host.invalid")


@pytest.mark.parametrize("there", [True, False])
def test_the_libraries_are_offline_only_inside_and_only_if_the_hub_is_silent(monkeypatch, there):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "reachable", lambda _: there)
    with hub.offline_if_unreachable("model", "someone/model"):
        assert constants.HF_HUB_OFFLINE is not there
    assert constants.HF_HUB_OFFLINE is False
