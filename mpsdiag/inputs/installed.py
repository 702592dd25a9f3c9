"""What the installed releases of torch and transformers do, tested on them and not assumed from a version number.

These functions inspect the installed code; each has a test that tries the real behaviour.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch.overrides import BaseTorchFunctionMode

from mpsdiag.emulation.mode import emulated
from mpsdiag.emulation.selection import Emulation
from mpsdiag.environment import version_numbers
from mpsdiag.inputs.modules import filtered_mean, mean


@cache
def evaluation_hides_nonfinite() -> bool:
    """Whether the Trainer leaves non-finite losses out of eval_loss by default (5.23 and later do)."""
    from transformers import Trainer

    return "logging_nan_inf_filter" in inspect.getsource(Trainer.evaluation_loop)


@cache
def compiles_under_a_mode() -> bool:
    """Whether torch.compile follows Python methods of tensors under a function mode (2.7 and 2.8 lose `split`)."""
    try:
        with BaseTorchFunctionMode():
            torch.compile(lambda tensor: tensor.split(1), backend="eager")(torch.zeros(2))
    except AttributeError:
        return False
    return True


def stock_mean(losses: Sequence[float], sizes: Sequence[int]) -> float:
    """The eval_loss that the installed transformers prints by default, from batch losses and sequences per batch."""
    return (filtered_mean if evaluation_hides_nonfinite() else mean)(losses, sizes)


@contextmanager
def as_on_mps(emulation: Emulation | None) -> Iterator[None]:
    """Inside, CPU tensors use the emulated kernels, and transformers makes its masks as with that torch release.

    transformers 4.53 to 5.0 repairs fully masked rows if the installed torch is older than 2.5; under an emulation
    the emulated release counts. None changes nothing.
    """
    with emulated(emulation), _older_masks(None if emulation is None else version_numbers(emulation.release)):
        yield


@contextmanager
def _older_masks(release: tuple[int, ...] | None) -> Iterator[None]:
    if release is None or release >= (2, 6):
        yield
        return
    from transformers import masking_utils

    older = getattr(masking_utils, "sdpa_mask_older_torch", None)
    if older is None:  # This transformers repairs nothing, whatever the torch release.
        yield
        return
    flag = "_is_torch_greater_or_equal_than_2_5"
    functions, before = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS, getattr(masking_utils, flag)
    setattr(masking_utils, flag, release >= (2, 5))
    functions["sdpa"] = older
    try:
        yield
    finally:
        setattr(masking_utils, flag, before)
        functions.pop("sdpa")
