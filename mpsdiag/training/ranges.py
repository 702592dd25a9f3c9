"""Which numbers the options of the pipeline take: a bad one would only fail in, or after, the training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from mpsdiag.errors import BadInput
from mpsdiag.words import LARGEST_SEED

_SEEDS: Final = (0, LARGEST_SEED)
_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "max_length": (2, math.inf),
    "eval_max_batches": (1, math.inf),
    "max_samples": (1, math.inf),
    "pad_to_multiple_of": (1, math.inf),
    "per_device_train_batch_size": (1, math.inf),
    "per_device_eval_batch_size": (1, math.inf),
    "gradient_accumulation_steps": (1, math.inf),
    "eval_accumulation_steps": (1, math.inf),
    "dataloader_num_workers": (0, math.inf),
    "num_train_epochs": (0, math.inf),
    "learning_rate": (0, math.inf),
    "weight_decay": (0, math.inf),
    "max_grad_norm": (0, math.inf),
    "adam_epsilon": (0, math.inf),
    "label_smoothing_factor": (0, 1),
    "seed": _SEEDS,
    "data_seed": _SEEDS,
}
_BELOW_ONE: Final = ("adam_beta1", "adam_beta2")


def check_ranges(given: Mapping[str, Any]) -> None:
    """Refuse numbers that no training can have, NaN and infinity among them.

    Args:
        given: Options by name; None, and names that are not known here, are not looked at.

    Raises:
        BadInput: An option is out of its range.
    """
    for name, (least, most) in _RANGES.items():
        value = given.get(name)
        if value is None or (math.isfinite(value) and least <= value <= most):
            continue
        reach = f"from {least} upward" if most == math.inf else f"from {least} to {most}"
        raise BadInput(f"--{name} is {value}; give a number {reach}.")
    for name in _BELOW_ONE:
        value = given.get(name)
        if value is not None and not 0 <= value < 1:
            raise BadInput(f"--{name} is {value}; give a number from 0 to less than 1.")
