"""What a watched process knows about itself and nobody has read yet: flags and counts that stay on the device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mpsdiag.inputs.nonfinite import IGNORED_LABEL, no_label_counts
from mpsdiag.inputs.outputs import loss_of
from mpsdiag.sdpa.watch import SdpaCall
from mpsdiag.tracing.process.forwards import WatchedForward
from mpsdiag.tracing.watch.tensors import judged_in


@dataclass
class Values:
    """What was read, as numbers: `flags` and `losses` of the forwards, `roots` of backwards, the gradient norm."""

    flags: list[float]
    losses: list[float]
    roots: list[float]
    unlabelled: list[float]
    rows: list[float]
    rows_nan: list[float]
    norms: list[float]
    skipped: list[float]


@dataclass
class Unread:
    """Since the last reading: forwards in order, and device scalars about them."""

    forwards: list[WatchedForward] = field(default_factory=list)
    roots: list[Tensor] = field(default_factory=list)
    unlabelled: list[Tensor] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    rows_nan: list[Tensor] = field(default_factory=list)
    mask: Tensor | None = None
    """The last one that was counted: layers share their mask."""

    def note(self, forward: WatchedForward, output: Any) -> None:
        """Judge the output of a forward."""
        with torch.no_grad(), unseen():
            judged = [tensor.detach() for _, tensor in judged_in(output) if _is_judged(tensor)]
            # The greatest value passes NaN on, and leaves out the minus infinities that rule tokens out.
            values = [(t.amax() if t.numel() > 1 else t.abs().reshape(())).float() for t in judged]
            if not values:
                return
            whole = values[0] if len(values) == 1 else _together(values).sum()
            loss = loss_of(output)
            forward.flag = whole
            if loss is not None and loss.is_floating_point():
                forward.loss = loss.detach().float().mean()
            if (none := no_label_counts(forward.kwargs)) is not None:
                self.unlabelled.append(none.float())
        if forward.grad and loss is None:
            forward.keep_gradients(judged_in(output))
        self.forwards.append(forward)

    def note_attention(self, args: tuple[Any, ...], options: dict[str, Any], result: Tensor) -> None:
        """Count the fully masked rows of a call, and see what became of them."""
        known = {name: options[name] for name in SdpaCall.__dataclass_fields__ if name in options}
        call = SdpaCall(*args[:5], **known)
        if call.attn_mask is None or call.attn_mask is self.mask or result.dim() != 4:
            return
        self.mask = call.attn_mask
        with torch.no_grad(), unseen():
            rows = call.masked_rows()
            if rows is not None:
                self.rows.append(rows.sum().float())
                self.rows_nan.append((result.sum(-1).isnan().any(1) & rows).any().float())

    def note_backward(self, roots: list[Tensor], *, scaled: bool) -> None:
        """Look at what a backward begins with; a loss that was scaled for half precision may be infinite."""
        with torch.no_grad(), unseen():
            for root in roots:
                if root.numel() == 1 and root.is_floating_point() and not scaled:
                    self.roots.append(root.detach().float().reshape(()))
                inside = any(forward.loss is not None for forward in self.forwards)
                if not inside and (none := _unlabelled_loss(root)) is not None:
                    self.unlabelled.append(none.float())

    def read(self, gradients: list[Tensor], found_inf: Tensor | None) -> Values:
        """All of it as numbers. Waits for the device, once."""
        flags = [forward.flag for forward in self.forwards if forward.flag is not None]
        losses = [forward.loss for forward in self.forwards if forward.loss is not None]
        with torch.no_grad(), unseen():
            norms = [_norm(gradients)] if gradients else []
            skipped = [] if found_inf is None else [found_inf.float().reshape(())]
            parts = (flags, losses, self.roots, self.unlabelled, self.rows, self.rows_nan, norms, skipped)
            every = [tensor for part in parts for tensor in part]
            numbers = iter(_together(every).tolist() if every else [])
        return Values(*([next(numbers) for _ in part] for part in parts))


def unseen() -> Any:
    """What the watch computes is none of the script's operations."""
    return torch._C.DisableTorchFunction()  # noqa: SLF001 - no public name for it


def _is_judged(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not tensor.is_nested and not tensor.is_meta and tensor.numel() > 0


def _together(values: list[Tensor]) -> Tensor:
    return torch.stack([value.to(values[0].device) for value in values])


def _norm(gradients: list[Tensor]) -> Tensor:
    """The norm of all gradients, a scalar on the device of the first."""
    norms = torch._foreach_norm(  # noqa: SLF001 - what clip_grad_norm_ calls
        [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
    )
    total: Tensor = torch.linalg.vector_norm(_together([norm.float() for norm in norms]))
    return total


def _unlabelled_loss(root: Tensor) -> Tensor | None:
    """Whether all labels of a cross entropy at the end of the graph are ignored, a scalar bool; None without one."""
    node = root.grad_fn
    for _ in range(8):
        if node is None:
            return None
        target = getattr(node, "_saved_target", None)
        if isinstance(target, Tensor):
            return ~target.ne(getattr(node, "_saved_ignore_index", IGNORED_LABEL)).any()
        node = next((following for following, _ in node.next_functions if following is not None), None)
    return None
