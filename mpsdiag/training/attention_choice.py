"""Which attention a training run uses."""

from __future__ import annotations

from typing import Final

from mpsdiag.errors import BadInput, one_of
from mpsdiag.fixes import MODES

AUTO: Final = "auto"


def choose_attention(asked: str, *, on_mps: bool, fix_disabled: bool) -> str:
    """Resolve `auto`, and turn `sdpa` into `eager` on MPS unless the fix is disabled.

    Args:
        asked: `auto` or an attention mode.
        on_mps: Whether the run is on MPS, real or emulated.
        fix_disabled: Whether the user disabled the fix.

    Raises:
        BadInput: There is no such mode.
    """
    one_of("attention mode", asked, (AUTO, *MODES))
    if asked in (AUTO, "sdpa"):
        return "eager" if on_mps and not fix_disabled else "sdpa"
    return asked


def require_available(mode: str, device: str, dtype: str, *, training: bool) -> None:
    """Do nothing if the mode runs here.

    Raises:
        BadInput: It does not; the sentence has the reason.
    """
    reason = MODES[mode].unavailable(device, dtype, training=training)
    if reason is not None:
        raise BadInput(
            f"Attention '{mode}' cannot run here: {reason.rstrip('.')}. Choose another --attn_implementation."
        )
