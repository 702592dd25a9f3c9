"""torch's own choice of attention backends: force one, and tell a refusal from a failure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mpsdiag.probes.declaration import Refused

BACKENDS: Final[dict[str, tuple[str, ...]]] = {
    "cuda": ("MATH", "EFFICIENT_ATTENTION", "FLASH_ATTENTION", "CUDNN_ATTENTION"),
    "xpu": ("MATH", "FLASH_ATTENTION"),
}
"""By kind of device, names of `torch.nn.attention.SDPBackend` to force in turn. MPS heeds none of them (facts, 1)."""
REFUSALS: Final = ("no available kernel", "no viable backend", "invalid backend")


@contextmanager
def forced(backend: str | None) -> Iterator[None]:
    """Inside, attention runs on this backend; Refused where torch lacks it or it refuses the call."""
    if backend is None:
        yield
        return
    import warnings

    from torch.nn.attention import SDPBackend, sdpa_kernel

    if not hasattr(SDPBackend, backend):
        raise Refused(f"this torch has no backend {backend}")
    try:
        # A refusal comes with a warning for each backend that was not asked for.
        with warnings.catch_warnings(), sdpa_kernel(getattr(SDPBackend, backend)):
            warnings.simplefilter("ignore")
            yield
    except RuntimeError as problem:
        if any(words in str(problem).lower() for words in REFUSALS):
            raise Refused(f"the backend {backend} does not take such calls") from problem
        raise
