"""Why a loss is non-finite, as far as the batch and the weights show, in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from mpsdiag.errors import MpsdiagError
from mpsdiag.words import EXIT_FOUND

if TYPE_CHECKING:
    from torch import Tensor, nn

LossCause = Literal["no_labels", "bad_weights", "device", "suspected_device", "same_on_cpu", "unknown"]
"""`device`: finite on the CPU with the same weights and batch. `same_on_cpu`: not finite there either."""

IGNORED_LABEL: Final = -100
_UNREAD_AS: Final = "mpsdiag_unread_nonfinite"
_LISTED: Final = 5

SENTENCES: Final[Mapping[LossCause, str]] = {
    "no_labels": (
        "every label of the batch is -100, so its loss is 0/0 on any device. This is the data, not the MPS defect: "
        "check the truncation length, and what the collator masks"
    ),
    "bad_weights": (
        "weights of the model are not finite: training has diverged, or they were loaded so; no loss can be finite"
    ),
    "device": (
        "the logits are not finite on this device, and finite on the CPU with the same weights. Fully masked attention "
        "rows of a padded batch are the usual reason: `mpsdiag check` finds out, attention 'safe_sdpa' repairs them"
    ),
    "suspected_device": (
        "on MPS (emulated or real), fully masked attention rows of a padded batch are the usual reason: "
        "`mpsdiag check` finds out, attention 'safe_sdpa' repairs them"
    ),
    "same_on_cpu": (
        "it is not finite on the CPU either, so the device is not the reason: `mpsdiag trace` finds the layer"
    ),
    "unknown": (
        "neither labels nor weights show why; `mpsdiag trace` finds the layer in which the first such value arises"
    ),
}


class NonFiniteLogitsError(MpsdiagError):
    """An evaluation is non-finite, and the user asked to stop in that case."""

    exit_code = EXIT_FOUND


def no_label_counts(inputs: Mapping[str, Any]) -> Tensor | None:
    """Whether every label of a batch is -100: a scalar bool on their device; None if it has no class labels.

    `shift_labels` are used unchanged; in `labels` (batch, length) the first of a sequence does not count, because a
    causal language model does not predict it.
    """
    import torch

    shifted, labels = inputs.get("shift_labels"), inputs.get("labels")
    found = shifted if shifted is not None else labels
    signed = (torch.int64, torch.int32, torch.int16, torch.int8)
    if not isinstance(found, torch.Tensor) or found.dtype not in signed or found.is_meta:
        return None
    counted = found[..., 1:] if shifted is None and found.dim() > 1 and found.shape[-1] > 1 else found
    if not counted.numel():
        return torch.ones((), dtype=torch.bool, device=counted.device)
    # No label is smaller than the ignored one; a maximum is faster than any().
    return counted.amax() <= IGNORED_LABEL


def weights_are_finite(model: nn.Module) -> bool:
    """Whether parameters and running statistics are finite, and other buffers have no NaN. Reads all of them."""
    import torch

    if not all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.is_floating_point()):
        return False
    return not any(
        bool(torch.isnan(buffer).any()) or (is_statistic(name) and not bool(torch.isfinite(buffer).all()))
        for name, buffer in model.named_buffers()
        if buffer.is_floating_point()
    )


def is_statistic(name: str) -> bool:
    """Whether a buffer is a running statistic of a normalization; others, such as masks, may hold infinities."""
    return name.rpartition(".")[2].startswith("running_")


def is_finite(value: Tensor | None) -> bool:
    """Whether a loss is finite; a missing one counts as finite."""
    import torch

    return value is None or bool(torch.isfinite(value).all())


def contains_nan(value: Any) -> bool:
    """Whether a tensor in a nested value holds a NaN. Minus infinity does not count: models write it into logits."""
    import torch

    if isinstance(value, torch.Tensor):
        # The maximum propagates NaN and needs no tensor of the same size.
        return value.is_floating_point() and value.numel() > 0 and bool(torch.isnan(value.amax()))
    if isinstance(value, Mapping):
        return any(contains_nan(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(contains_nan(item) for item in value)
    return False


def explain_cause(inputs: Mapping[str, Any], model: nn.Module) -> LossCause:
    """The cause of a non-finite loss, if it shows without running the model again; otherwise `unknown`."""
    unlabelled = no_label_counts(inputs)
    if unlabelled is not None and bool(unlabelled):
        return "no_labels"
    if not weights_are_finite(model):
        return "bad_weights"
    return "unknown"


def keep_unread_nonfinite(model: nn.Module, folder: str, unread: Iterable[str]) -> None:
    """Remember the non-finite weights in a local folder's safetensors files that its class does not read."""
    from safetensors import safe_open

    wanted, found = set(unread), []
    for file in sorted(Path(folder).expanduser().glob("*.safetensors")) if wanted else ():
        with safe_open(file, framework="pt") as opened:
            for key in wanted & set(opened.keys()):
                value = opened.get_tensor(key)
                if value.is_floating_point() and not bool(value.isfinite().all()):
                    found.append(key)
    setattr(model, _UNREAD_AS, tuple(sorted(found)))


def unread_nonfinite(model: nn.Module) -> tuple[tuple[str, ...], str]:
    """The checkpoint's weights that are neither read nor finite, and a sentence without a full stop; empty if none."""
    bad = getattr(model, _UNREAD_AS, ())
    if not bad:
        return (), ""
    return bad, (
        f"the checkpoint holds NaN or infinity in weights that {type(model).__name__} does not read: "
        f"{', '.join(bad[:_LISTED])}; it was saved after training had diverged, or is damaged"
    )
