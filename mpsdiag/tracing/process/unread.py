"""Flags and counts of a watched process that have not been read yet and stay on the device."""

import math
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from mpsdiag.inputs.modules import loss_of
from mpsdiag.inputs.nonfinite import IGNORED_LABEL, no_label_counts
from mpsdiag.sdpa.watch import count_pairs, masked_pairs
from mpsdiag.tracing.process.forwards import WatchedForward
from mpsdiag.tracing.watch.tensors import impurity, is_judged, judged_in, unseen
from mpsdiag.tracing.watch.tracer import flag_of, is_up, norm_of, numbers, readable

WAITING = 16
"""At most this many calls with gradients wait for an optimizer step before their flags are read."""
NEAREST = 32
"""How many nodes of the graph behind a loss are examined."""
KEPT_POLES = 8
"""How many of their inputs are kept until the flags are read."""
POLES: Final = {
    "DivBackward0": ("div", "other"),
    **{f"{name.capitalize()}Backward0": (name, "self") for name in ("log", "log2", "log10")},
}


@dataclass
class Values:
    """The values that were read: `flags` and `losses` of the forwards, `roots` of backwards, the gradient norm."""

    flags: list[float]
    losses: list[float]
    roots: list[float]
    unlabelled: list[float]
    rows: list[float]
    rows_nan: list[float]
    norms: list[float]
    skipped: list[float]

    @property
    def bad_loss(self) -> bool:
        """What a backward began with is not finite."""
        return not all(map(math.isfinite, self.roots))

    def are_bad(self, gradients: list[Tensor]) -> bool:
        """Whether a loss or a gradient is non-finite; the norm of finite gradients may overflow."""
        return self.bad_loss or (not all(map(math.isfinite, self.norms)) and any(map(impurity, gradients)))


@dataclass
class Unread:
    """Since the last reading: forwards in order, and device scalars about them."""

    forwards: list[WatchedForward] = field(default_factory=list)
    roots: list[Tensor] = field(default_factory=list)
    unlabelled: list[Tensor] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    rows_nan: list[Tensor] = field(default_factory=list)
    poles: deque[tuple[str, Tensor]] = field(default_factory=lambda: deque(maxlen=KEPT_POLES))
    """Operations in losses outside the models, with the input that must not be zero."""
    mask: Tensor | None = None
    """The last mask that was counted: layers share their mask."""
    counted: int = 0
    """Fully masked rows that could be counted without waiting for a device."""
    settled: set[Any] = field(default_factory=set)
    """The properties that choose a kernel, if that kernel's treatment of fully masked rows is known."""

    @property
    def is_due(self) -> bool:
        """Whether to read before the next call: after any evaluation."""
        some = self.forwards or self.unlabelled or self.rows
        return len(self.forwards) >= WAITING or (bool(some) and not torch.is_grad_enabled())

    def note(self, forward: WatchedForward, output: Any) -> None:
        """Judge the output of a forward, on the CPU at once: without gradients, nothing more can come of a good one."""
        with unseen():
            loss = loss_of(output)
            if loss is not None and is_judged(loss):
                own = loss.detach() if loss.requires_grad else loss
                forward.loss = own if own.numel() == 1 else own.float().mean()
            forward.flag = flag_of(output, but=loss if loss is not None and loss.numel() == 1 else None)
            flags = [flag for flag in (forward.flag, forward.loss) if flag is not None]
            if not flags:
                return
            none = no_label_counts(forward.kwargs)
            at_once = readable(flags)
            if none is not None and (not at_once or bool(none)):
                self.unlabelled.append(none)
            if at_once and not forward.grad and all(math.isfinite(flag.item()) for flag in flags):
                forward.bad = False
                forward.learn()
                return
            if forward.grad and loss is None:
                forward.keep_gradients(judged_in(output))
        forward.keep()
        self.forwards.append(forward)

    def note_attention(self, args: tuple[Any, ...], options: dict[str, Any], result: Tensor) -> None:
        """Count the fully masked rows of a call, and check what the kernel made of them."""
        mask = args[3] if len(args) > 3 else options.get("attn_mask")
        if mask is None or mask is self.mask or result.dim() != 4 or not result.shape[-1] or result.is_meta:
            return
        self.mask = mask
        with unseen():
            found = count_pairs(mask, result.shape)
            if found is not None:
                self.counted += found
                kernel = mask.shape, mask.dtype, result.shape, result.dtype, result.requires_grad
                if not found or kernel in self.settled:
                    return
                self.settled.add(kernel)
            rows = masked_pairs(mask, result.shape)
            if found is None:
                self.rows.append(rows.sum())
            # A softmax over nothing gives the same in all channels: the first stands for them.
            self.rows_nan.append((result.detach()[..., 0].sum(1).isnan() & rows).any())

    def note_backward(self, roots: Any, *, scaled: bool) -> None:
        """Examine the tensors that a backward starts from; a loss scaled for half precision may be infinite."""
        inside = any(forward.loss is not None for forward in self.forwards)
        with unseen(), suppress(RuntimeError):  # Of a graph that is gone; the backward says so itself.
            for root in roots if isinstance(roots, tuple | list) else [roots]:
                if not isinstance(root, Tensor):  # Such as the edge of a graph.
                    continue
                if root.numel() == 1 and root.is_floating_point() and not scaled:
                    self.roots.append(root.detach())
                for node in () if inside else _nearest(root):
                    target = _saved(node, "target")
                    if target is not None:
                        self.unlabelled.append(~target.ne(getattr(node, "_saved_ignore_index", IGNORED_LABEL)).any())
                    operation, saved = POLES.get(node.name(), ("", ""))
                    if operation and (value := _saved(node, saved)) is not None:
                        self.poles.append((operation, value.detach()))

    def read(self, gradients: list[Tensor], found_inf: Tensor | None) -> Values:
        """Everything as numbers. Waits for the device once."""
        flags = [forward.flag for forward in self.forwards if forward.flag is not None]
        losses = [forward.loss for forward in self.forwards if forward.loss is not None]
        norms = [norm_of(gradients)] if gradients else []
        skipped = [] if found_inf is None else [found_inf]
        every = (flags, losses, self.roots, self.unlabelled, self.rows, self.rows_nan, norms, skipped)
        values = Values(*numbers(*every))
        values.rows.append(self.counted)
        read_flags, read_losses = iter(values.flags), iter(values.losses)
        with unseen():
            for forward in self.forwards:
                up = forward.flag is not None and is_up(next(read_flags))
                forward.bad = (forward.loss is not None and not math.isfinite(next(read_losses))) or up
                forward.learn()
        return values


def _saved(node: Any, name: str) -> Tensor | None:
    """A tensor that a node of the graph has saved as it is: to unpack others, as of a checkpoint, runs their hooks."""
    packed = getattr(node, f"_raw_saved_{name}", None)
    if getattr(packed, "unpack_hook", None) is not None:
        return None
    saved = getattr(node, f"_saved_{name}", None)
    return saved if isinstance(saved, Tensor) else None


def _nearest(root: Tensor) -> Iterator[Any]:
    """The nodes of the graph nearest to a loss."""
    waiting, seen = deque([root.grad_fn]), set[Any]()
    while waiting and len(seen) < NEAREST:
        node = waiting.popleft()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting.extend(following for following, _ in node.next_functions)
