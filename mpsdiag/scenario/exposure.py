"""Predict fully masked rows without a forward: from the config, the padding of the batches, and the attention.

A causal decoder builds its mask as `key <= query` and `key is not padding` (and the window or chunk of the layer), and
nothing repairs a row that is left without a key. So the rows follow from the 2D padding masks alone. An encoder's
mask has no `key <= query`: every query sees every real token.

torch takes the fast MPS operator unless grad mode is on and query, key or value requires a gradient. With a frozen
base, with adapters behind the attention only, or inside reentrant checkpointing, training takes it too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mpsdiag.findings import Exposure, LayerExposure
from mpsdiag.inputs.batches import sees_both_ways
from mpsdiag.inputs.modules import in_mode
from mpsdiag.sdpa.watch import SdpaCall, SdpaWatch, masked_pairs

LEFT = "padding on the left"
FIXED = "padding of every sequence (pad_to_multiple_of, or to a fixed length)"
WINDOW = "sliding window or chunk, beyond the last real token"
EMPTY = "sequences of padding only"
GAPS = "gaps in the attention_mask"
GIVEN = "a 4D mask given by the user"


@dataclass(frozen=True)
class Kind:
    """What the layers of one kind see: all keys so far, those in a window or chunk of `width`, or both directions."""

    name: Literal["full", "sliding", "chunked"]
    width: int | None = None
    causal: bool = True


def attention_kinds(config: Any) -> dict[Kind, int]:
    """The kinds of attention in a config, or in its part for text, with the number of layers of each."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers = int(getattr(text, "num_hidden_layers", 1) or 1)
    window, chunk = getattr(text, "sliding_window", None), getattr(text, "attention_chunk_size", None)
    if getattr(text, "use_sliding_window", True) is False:
        window = None
    named = getattr(text, "layer_types", None)
    causal = not sees_both_ways(config)
    found: dict[Kind, int] = {}
    for name in named or ["sliding_attention" if window else "full_attention"] * layers:
        if name == "sliding_attention" and window:
            kind = Kind("sliding", int(window), causal)
        elif name == "chunked_attention" and chunk:
            kind = Kind("chunked", int(chunk), causal)
        elif name.endswith("full_attention") or name in ("sliding_attention", "chunked_attention"):
            kind = Kind("full", causal=causal)
        else:
            continue  # Linear attention, state spaces: no softmax over keys.
        found[kind] = found.get(kind, 0) + 1
    return found


def dead_positions(padding: Tensor, kind: Kind) -> Tensor:
    """Which queries may attend to no key, (sequences, positions) bool; `padding` is 1 or True at real tokens."""
    kept = padding.bool().cpu()
    queries = torch.arange(kept.shape[1]).expand_as(kept)
    first, last = _reach(kept, queries, kind)
    # A query may attend to a run of positions; none of its keys is kept if the count of kept keys does not rise there.
    counts = torch.nn.functional.pad(kept.long().cumsum(-1), (1, 0))
    return counts.gather(-1, last + 1) == counts.gather(-1, first)


def _reach(kept: Tensor, queries: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """The first and the last position that each query would see without padding, each (sequences, positions)."""
    end = kept.shape[1] - 1
    last = queries if kind.causal else torch.full_like(queries, end)
    if kind.name == "sliding" and kind.width is not None:
        if kind.causal:
            return (queries - kind.width + 1).clamp(min=0), last
        return (queries - kind.width).clamp(min=0), (queries + kind.width).clamp(max=end)
    if kind.name == "chunked" and kind.width is not None:
        # Chunks are counted from the first real token; that is where transformers starts them.
        start = (kept.cumsum(-1) == 0).sum(-1, keepdim=True)
        chunk = start + (queries - start) // kind.width * kind.width
        return chunk.clamp(min=0), torch.minimum(last, chunk + kind.width - 1)
    return torch.zeros_like(queries), last


@dataclass(frozen=True)
class Padding:
    """The kind of each position, (sequences, positions) bool on the CPU: a real token, or padding of some kind."""

    real: Tensor
    alone: Tensor
    """In sequences of padding only."""
    before: Tensor
    """Before the first real token."""
    after: Tensor
    """After the last real token."""

    @classmethod
    def of(cls, padding: Tensor) -> Padding:
        """Tell the kinds apart; `padding` is 1 or True at real tokens."""
        kept = padding.bool().cpu()
        so_far = kept.cumsum(-1)
        alone = ~kept.any(-1, keepdim=True).expand_as(kept)
        return cls(kept, alone, (so_far == 0) & ~alone, (so_far == so_far[:, -1:]) & ~kept & ~alone)


def reasons(padding: Tensor, dead: Tensor) -> dict[str, int]:
    """Count fully masked rows, `dead`, by origin; both are (sequences, positions), as for `Padding`."""
    kinds = Padding.of(padding)
    alone, before = kinds.alone, kinds.before
    # If even the longest sequence is padded, that much padding is not due to other sequences.
    common = before.all(0) if not bool(alone.any()) else before[~alone[:, 0]].all(0)
    sorted_out = {
        EMPTY: dead & alone,
        FIXED: dead & before & common,
        LEFT: dead & before & ~common,
        WINDOW: dead & kinds.after,
        GAPS: dead & ~alone & ~before & ~kinds.after,
    }
    return {name: int(rows.sum()) for name, rows in sorted_out.items() if bool(rows.any())}


def predict(
    config: Any, batches: Sequence[Mapping[str, Any]], *, attention: str = "sdpa", notes: Sequence[str] = ()
) -> Exposure:
    """Predict how many fully masked rows the batches have under an attention mode, and why.

    `batches` are `input_ids` and `attention_mask` (2D, or a 4D mask), as the collator makes them; `notes` are sentences
    to hand on, such as those of `training_notes`.
    """
    kinds = attention_kinds(config)
    rows, total, hit = 0, 0, 0
    why, by_kind = Counter[str](), Counter[Kind]()
    for batch in batches:
        mask = batch.get("attention_mask")
        total += int(next(iter(batch.values())).shape[0])
        if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
            continue
        found = {kind: _dead(mask, kind, batch) for kind in kinds}
        if not found:
            continue
        # A sequence is as exposed as its most exposed layer; layers of several kinds have the same rows.
        worst = max(found.values(), key=lambda dead: int(dead.sum()))
        rows, hit = rows + int(worst.sum()), hit + int(worst.any(-1).sum())
        by_kind.update({kind: int(dead.sum()) for kind, dead in found.items()})
        why.update(reasons(mask, worst) if mask.dim() == 2 else {GIVEN: int(worst.sum())})
    return Exposure(
        rows=rows,
        sequences=hit,
        of_sequences=total,
        reasons=dict(+why),
        layers=[
            LayerExposure(kind=kind.name, width=kind.width, layers=count, rows=by_kind[kind])
            for kind, count in kinds.items()
        ],
        reach_sdpa=attention == "sdpa",  # The other modes hand no such row on.
        causal=not sees_both_ways(config),
        notes=list(notes),
    )


def _dead(mask: Tensor, kind: Kind, batch: Mapping[str, Any]) -> Tensor:
    if mask.dim() == 2:
        return dead_positions(mask, kind)
    # A 4D mask is passed to attention unchanged, whatever the layer.
    shape = torch.Size((int(next(iter(batch.values())).shape[0]), *mask.shape[1:]))
    return masked_pairs(mask if mask.is_floating_point() else mask.bool(), shape).cpu()


class _GradientWatch(SdpaWatch):
    """For each call of attention, why it takes the path of an evaluation; None if it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str | None] = []

    def saw_sdpa(self, call: SdpaCall, result: Tensor) -> None:
        del result
        wanted = any(tensor.requires_grad for tensor in (call.query, call.key, call.value))
        why = None
        if not torch.is_grad_enabled():
            why = "reentrant gradient checkpointing runs them without gradients (use_reentrant=False does not)"
        elif not wanted and not call.dropout_p:  # Dropout keeps a call off the fast kernel, up to torch 2.11.
            why = "no weight in front of them is trained (frozen base, or adapters behind the attention only)"
        self.reasons.append(why)


def training_exposure(model: nn.Module) -> list[str | None]:
    """For each call of attention in training, why it takes the path of an evaluation; None if it does not.

    The model is run on two tokens without padding, its `input_ids`, and left unchanged, including random numbers.
    """
    device = next(model.parameters()).device
    watch, devices = _GradientWatch(), [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), in_mode(model, training=True, grad=True), watch:
        model(input_ids=torch.tensor([[1, 1]], device=device), use_cache=False)
    return watch.reasons


def training_notes(model: nn.Module) -> list[str]:
    """Sentences about training if it is exposed like an evaluation; none if it is not."""
    try:
        calls = training_exposure(model)
    except (TypeError, ValueError, RuntimeError):  # Needs more than token ids; or the scenario shows why it fails.
        return []
    exposed = [(index, why) for index, why in enumerate(calls) if why]
    if not exposed:
        return []
    number, why = exposed[0]
    sentence = (
        f"Training is exposed too: {len(exposed)} of {len(calls)} attention calls, from number {number} on, take "
        f"the path without gradients, because {why}."
    )
    return [sentence]
