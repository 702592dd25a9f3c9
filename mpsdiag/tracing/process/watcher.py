"""Watches all models of a process while they run: one flag for each call, read once a step, late enough not to wait.

Flags of evaluations are read at once on the CPU, elsewhere when the next call begins; those of a training step just
before the optimizer changes the weights, so that a bad step is examined with the weights it had.
"""

import functools
import gc
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from mpsdiag.fixes.layers import IN_FORCE, compile_to_operator, hold
from mpsdiag.tracing.origin import Origin
from mpsdiag.tracing.passes.divergence import Trajectory
from mpsdiag.tracing.process import explained
from mpsdiag.tracing.process.findings_kept import Findings
from mpsdiag.tracing.process.forwards import WatchedForward, holds_values
from mpsdiag.tracing.process.unread import Unread
from mpsdiag.tracing.process.watched import ScriptFinding, Watched

KEPT_STEPS = 50


class ProcessWatch:
    """The watch over a process, or over one model in it.

    Attributes:
        findings: What was found so far, and what could not be followed.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        found: Callable[[ScriptFinding, WatchedForward], None] = lambda *_: None,
        saw: Callable[[WatchedForward], None] = lambda _: None,
    ) -> None:
        self.findings = Findings(found)
        self._only = model
        self._saw = saw
        self._counts = Counter[str]()  # Of `Watched`, whose checks cost more than a forward allows.
        self._models = Counter[str]()
        self._rows_nan: bool | None = None
        self._busy = False
        self._unread = Unread()
        self._last: WatchedForward | None = None  # The last with gradients, until a step.
        self._stepped: tuple[weakref.ref[nn.Module], WatchedForward] | None = None
        self._bad_before: nn.Module | None = None
        self._scaled = self._inside = self._spoilt = False
        self._by_hand: bool | None = None
        self._optimizers = weakref.WeakValueDictionary[int, torch.optim.Optimizer]()
        self._trajectory = Trajectory(0.0)
        self._undo: list[Callable[[], Any]] = []

    def start(self) -> None:
        """Start watching."""
        call, watch, compiles = nn.Module.__call__, self, torch.compiler.is_compiling
        step, scale = torch.amp.GradScaler.step, torch.amp.GradScaler.scale
        stock = call is getattr(nn.Module, "_wrapped_call_impl", None)

        def watched_call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if compiles() or watch._busy:  # In this order, or compiled code depends on `_busy`.
                if stock and self._compiled_call_impl is None:  # As torch does; one Python frame less a module.
                    return self._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]  # in torch
                return call(self, *args, **kwargs)
            return watch._forward(call, self, args, kwargs)

        def watched_step(self: Any, *args: Any, **kwargs: Any) -> Any:
            before = watch._counts["steps"]
            result = step(self, *args, **kwargs)
            if watch._counts["steps"] == before:
                watch._counts["skipped_steps"] += 1
                watch.read()
            return result

        def watched_scale(self: Any, outputs: Any) -> Any:
            watch._scaled = watch._scaled or self.is_enabled()
            return scale(self, outputs)

        self._replace(nn.Module, "__call__", watched_call)
        self._replace(torch.autograd, "backward", self._watching(torch.autograd.backward))
        self._replace(torch.autograd, "grad", self._watching(torch.autograd.grad))
        self._replace(torch.amp.GradScaler, "step", watched_step)
        self._replace(torch.amp.GradScaler, "scale", watched_scale)
        before: Any = register_optimizer_step_pre_hook(self._before_step)
        after: Any = register_optimizer_step_post_hook(self._after_step)
        IN_FORCE.saw = self._saw_sdpa
        self._undo += [before.remove, after.remove, hold(function=True), lambda: setattr(IN_FORCE, "saw", None)]

    def _watching(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """What a run of autograd becomes."""

        @functools.wraps(run)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return run(*args, **kwargs)
            if not self._busy and holds_values():
                self._counts["backwards"] += 1
                roots = args[0] if args else kwargs.get("tensors", kwargs.get("outputs", ()))
                if len(self._unread.roots) > KEPT_STEPS:  # Nothing else reads those of a script without modules.
                    self.read()
                self.findings.spared(self._unread.note_backward, roots, scaled=self._scaled)
            with self.aside():  # What is checkpointed runs its modules again in here.
                result = run(*args, **kwargs)
            self._after_backward()
            return result

        compile_to_operator(watched, f"aten::{run.__name__}")
        return watched

    def stop(self) -> None:
        """Read what is pending, including the weights after the last step, and restore everything."""
        try:
            self.read()
            if self._stepped is not None and self._last is None and (model := self._stepped[0]()) is not None:
                self._stepped[1].model = model
                with self.aside():
                    self.findings.look(
                        self._stepped[1], lambda: explained.of_step(model, self._steppers, self._trajectory)
                    )
        finally:
            for undo in reversed(self._undo):
                undo()
            self._undo.clear()

    def forget(self) -> None:
        """Start counting from zero, as in a process forked from this one."""
        undo, self._undo = self._undo, []
        self.__init__(self._only, self.findings.found, self._saw)  # type: ignore[misc]  # the initial state is wanted
        self._undo = undo

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Code in the block does not belong to the script and is not watched."""
        before, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = before

    def _replace(self, owner: Any, name: str, new: Any) -> None:
        old = getattr(owner, name)
        setattr(owner, name, new)
        self._undo.append(lambda: setattr(owner, name, old))

    def _forward(
        self, call: Callable[..., Any], model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not holds_values() or self._only not in (None, model):
            return call(model, *args, **kwargs)
        self._busy = True
        try:
            if self._unread.is_due:
                self._read()
            forward = self.findings.spared(WatchedForward.of, model, args, kwargs, self._counts["steps"])
            self._unread.mask = None
            self._inside = True
            output = call(model, *args, **kwargs)
            self._counts["forwards"] += 1
            self._models[type(model).__name__] += 1
            if forward is None:
                return output
            self.findings.spared(self._unread.note, forward, output)
            if forward.bad is False:
                self._bad_before = None
            elif not forward.grad and forward.known.repeat.device.type == "cpu":
                self._read()
            self._last = forward if forward.grad else self._last
            self.findings.spared(self._saw, forward)
        finally:
            self._busy = self._inside = False
        return output

    def _saw_sdpa(self, args: tuple[Any, ...], options: dict[str, Any], result: Tensor) -> None:
        if not torch.compiler.is_compiling() and self._inside:
            self.findings.spared(self._unread.note_attention, args, options, result)

    def _after_backward(self) -> None:
        # Weights may be changed by hand, without a visible optimizer.
        if not (self._busy or self._scaled or self._has_optimizer()):
            models = {forward.model for forward in self._unread.forwards}
            weights = [weight for model in models for weight in model.parameters()]
            self.read([weight.grad for weight in weights if weight.grad is not None])

    def _has_optimizer(self) -> bool:
        if not self._counts["steps"] and self._by_hand is None:
            self._by_hand = not any(issubclass(type(one), torch.optim.Optimizer) for one in gc.get_objects())
        return self._counts["steps"] > 0 or not self._by_hand

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        if self._busy:
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # After the optimizer itself.
        if callable(closure):

            def watched_closure(*given: Any, **named: Any) -> Any:
                loss = closure(*given, **named)
                self._read_step(optimizer)
                return loss

            if len(args) > 1:
                return (args[0], watched_closure, *args[2:]), kwargs
            return args, {**kwargs, "closure": watched_closure}
        self._read_step(optimizer)
        return None

    def _read_step(self, optimizer: torch.optim.Optimizer) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        self.read(gradients, getattr(optimizer, "found_inf", None))

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        if not self._busy:
            self._counts["steps"] += 1
            self._optimizers[id(optimizer)] = optimizer
            if self._last is not None:  # The script may delete the model from now on.
                self._stepped = weakref.ref(self._last.model), self._last.let_go()
                self._last = None

    def read(self, gradients: list[Tensor] | None = None, found_inf: Tensor | None = None) -> None:
        """Read what is pending, and examine what is not finite. Waits for the device once.

        `gradients` are about to be used; `found_inf` is GradScaler's, if it leaves skipping to the optimizer.
        """
        if not self._busy:
            with self.aside():
                self._read(gradients, found_inf)

    def _read(self, gradients: list[Tensor] | None = None, found_inf: Tensor | None = None) -> None:
        counts, unread, forwards = self._counts, self._unread, self._unread.forwards
        self._unread = Unread(mask=unread.mask, settled=unread.settled)
        values = self.findings.spared(unread.read, gradients or [], found_inf)
        if values is None:
            return
        counts["unlabelled"] += int(sum(values.unlabelled))
        counts["masked_rows"] += int(sum(values.rows))
        if any(values.rows):
            self._rows_nan = bool(self._rows_nan) or any(values.rows_nan)
        if gradients:
            own = values.losses or values.roots
            self._trajectory.note(sum(own) / len(own) if own else math.nan, values.norms[0])
            del self._trajectory.losses[:-KEPT_STEPS], self._trajectory.grad_norms[:-KEPT_STEPS]
        for forward in forwards:
            if forward.bad:
                self._look_at(forward)
            self._bad_before = forward.model if forward.bad else None
        if any(values.skipped):  # GradScaler leaves it to the optimizer.
            counts["skipped_steps"] += 1
        elif values.are_bad(gradients or []):
            self._spoilt = True
            if not any(forward.grad for forward in forwards) and self._last is not None:
                forwards.append(self._last)  # Read before its backward, when another call began.
            if forwards and not any(forward.bad for forward in forwards):
                last = next((forward for forward in forwards if forward.grad), forwards[-1])
                self.findings.look(last, lambda: explained.of_backward(unread, values, self._trajectory))

    def _look_at(self, forward: WatchedForward) -> None:
        self._counts["hidden_losses"] += forward.line.hides

        def explain() -> Origin | None:
            origin = explained.of_forward(forward, self._steppers, self._trajectory)
            # Given by another model just before, such as logits to a loss, and already found there.
            handed_on = self._bad_before not in (None, forward.model)
            return None if handed_on and origin.cause == "bad_inputs" else origin

        self.findings.look(forward, explain)

    @property
    def _steppers(self) -> list[torch.optim.Optimizer]:
        """The optimizers that may be to blame for bad weights; none if one was given non-finite gradients."""
        return [] if self._spoilt else list(self._optimizers.values())

    @property
    def watched(self) -> Watched:
        """What was seen so far."""
        ran = int(self._counts["forwards"] > 0)
        return Watched(
            **self._counts,
            models=dict(self._models),
            masked_rows_nan=self._rows_nan,
            processes=ran,
            not_repeated=self.findings.not_repeated,
            unwatched=dict(self.findings.unwatched),
        )
