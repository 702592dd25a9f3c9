"""The hub when there is no network: use what is cached, and fail in a second instead of after a minute of retries."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

_CONNECT_SECONDS: Final = 5.0
_PROXIES: Final = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
# Where each library keeps the flag that its HF_HUB_OFFLINE variable sets at import.
_FLAGS: Final = (
    ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_HUB_OFFLINE"),
    ("transformers.utils.hub", "_is_offline_mode"),
)


def reachable(endpoint: str) -> bool:
    """Say whether a host answers at its port. Behind a proxy that cannot be known, and the answer is yes.

    Args:
        endpoint: A URL.
    """
    if any(os.environ.get(name) for name in _PROXIES):
        return True
    parts = urlsplit(endpoint)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 443), timeout=_CONNECT_SECONDS):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Inside this block the libraries look only into their caches, if the hub does not answer."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or reachable(constants.ENDPOINT):
        yield
        return
    changed: list[tuple[Any, str, Any]] = []
    try:
        for module_name, flag in _FLAGS:
            module = sys.modules.get(module_name)
            if module is not None and hasattr(module, flag):
                changed.append((module, flag, getattr(module, flag)))
                setattr(module, flag, True)
        yield
    finally:
        for module, flag, before in changed:
            setattr(module, flag, before)
