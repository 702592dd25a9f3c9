"""The words of the pipeline that users look for, to the letter."""

from __future__ import annotations

from typing import Final

USING_SAFE_TRAINER: Final = "Using MPSSafeTrainer for MPS device (prevents NaN eval loss)"
USING_STANDARD_TRAINER: Final = "Using standard HuggingFace Trainer"
FIX_DISABLED: Final = (
    "⚠️  WARNING: MPS device detected but MPS fix disabled via --disable_mps_fix\n"
    "    You may experience NaN eval_loss during evaluation.\n"
    "    To enable the fix, remove the --disable_mps_fix flag."
)


def emulation_announcement(emulated: str) -> str:
    """The first line of a run under emulation: the messages after it are those of an MPS device.

    Args:
        emulated: Such as `emulated MPS of torch 2.8 on macOS 15`.
    """
    what = emulated.removeprefix("emulated ")
    return (
        f"EMULATED {what} (on the CPU): nothing here was measured on MPS. Where the messages below say MPS, they mean "
        "the emulated one."
    )


def switched_to_eager(device: str) -> str:
    """The warning that attention has been switched, why, what is better, and how to be rid of the warning.

    Args:
        device: What the reader is on, such as `MPS` or `emulated MPS of torch 2.8 on macOS 15`.
    """
    return (
        f"⚠️  WARNING: attention switched from sdpa to eager on {device}\n"
        "    The fused attention kernels of several torch releases return NaN or wrong numbers on MPS for query rows\n"
        "    that may attend to no key, which every padded batch has.\n"
        "    Exact, and without the memory of eager: --attn_implementation safe_sdpa\n"
        "    To silence this warning: --attn_implementation eager (or --disable_mps_fix, which keeps sdpa as it is)."
    )


def trainer_announcement(*, on_mps: bool, fix_disabled: bool) -> str:
    """What is said about the choice of the Trainer."""
    if not on_mps:
        return USING_STANDARD_TRAINER
    return f"{FIX_DISABLED}\n{USING_STANDARD_TRAINER}" if fix_disabled else USING_SAFE_TRAINER
