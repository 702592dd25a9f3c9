"""The detailed backward: the operation whose derivative gives the first non-finite gradient.

No torch function runs in a backward; autograd walks its own graph. So during the forward every node is claimed by the
operation that made it, and a hook on the node sees its input and output.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mpsdiag.inputs.modules import loss_of
from mpsdiag.tracing.origin import REMEDIES, Origin
from mpsdiag.tracing.watch.calls import POLES
from mpsdiag.tracing.watch.model_state import Repeat, device_label, unexplained
from mpsdiag.tracing.watch.tensors import LISTED, Impurity, facts, fresh, impurity, largest, tensors_in
from mpsdiag.tracing.watch.tracer import Tracer

_LARGE = 1e9
# Their derivatives are infinite somewhere, so an infinite gradient is not an overflow.
_POLES = (*POLES, "pow", "norm", "vector_norm", "std", "var", "prod", "where", "hypot", "cdist")


class GraphWatch:
    """Claims nodes during the forward, and watches them during the backward."""

    def __init__(self) -> None:
        self.first: Origin | None = None
        self._claims: dict[Any, dict[str, Any]] = {}  # by node: module, layer and operation, as an Origin has them

    def claim(self, module: str, layer: int | None, operation: str | None, result: Any) -> None:
        """Claim the nodes behind an operation's result that no earlier operation has claimed."""
        waiting = [tensor.grad_fn for _, tensor in tensors_in(result) if tensor.grad_fn is not None]
        while waiting:
            node = waiting.pop()
            if node in self._claims or node.name().endswith("AccumulateGrad"):
                continue
            self._claims[node] = {"module": module, "layer": layer, "operation": operation or node.name()}
            waiting += [following for following, _ in node.next_functions if following is not None]

    def watch(self) -> None:
        """Add hooks to all claimed nodes."""
        for node, claim in self._claims.items():
            node.register_hook(self._listener(node.name(), claim))

    def forget(self) -> None:
        """Release the graph."""
        self._claims.clear()

    def _listener(self, name: str, claim: dict[str, Any]) -> Any:
        def listen(outgoing: tuple[Tensor | None, ...], incoming: tuple[Tensor | None, ...]) -> None:
            came = [gradient for gradient in incoming if gradient is not None]
            if self.first is not None or any(map(impurity, came)):
                return
            gave = {f"result {i}": gradient for i, gradient in enumerate(outgoing) if gradient is not None}
            state = next(filter(None, map(impurity, gave.values())), None)
            if state is not None:
                self.first = _broken_derivative(claim, name, state, came, gave)

        return listen


def backward_of(output: Any) -> bool:
    """Run the backward of an output's loss, as transformers' Trainer does; False if it has none."""
    loss = loss_of(output)
    if loss is None:
        return False
    torch.autograd.backward(loss.mean())
    return True


def explain_backward(
    model: nn.Module, batch: Mapping[str, Any], repeat: Repeat, backward: Callable[[Any], bool] = backward_of
) -> Origin | None:
    """Run forward and backward in detail, in the current modes and with gradients.

    `backward` runs the backward of an output; it returns False if there is nothing to start from.
    """
    repeat.again()
    model.zero_grad(set_to_none=True)
    graph = GraphWatch()
    given = fresh(batch)
    tracer = Tracer(model, given, claim=graph.claim)
    with tracer.watching():
        output = model(**given)
    graph.watch()
    if not backward(output):
        return None
    graph.forget()
    bad = [name for name, p in model.named_parameters() if p.grad is not None and impurity(p.grad)]
    if not bad:
        return None
    evidence = {"bad_gradients": bad[:LISTED], "of": len(bad), "device": device_label(model)}
    if graph.first is not None:
        return graph.first.model_copy(update={"evidence": evidence | graph.first.evidence})
    what = f"gradients of {len(bad)} weights are not finite, but no derivative was seen to cause this"
    origin = unexplained(model, what, "hooks", operation="backward", phase="backward", **evidence)
    return origin.model_copy(update={"module": bad[-1].rpartition(".")[0]})


def _broken_derivative(
    claim: dict[str, Any], node: str, state: Impurity, incoming: list[Tensor], outgoing: Mapping[str, Tensor]
) -> Origin:
    """The origin of non-finite gradients, the `outgoing`, that arise from finite ones."""
    gave = [facts(gradient, name) for name, gradient in outgoing.items()]
    dtype, greatest = gave[0]["dtype"], max(map(largest, incoming), default=0.0)
    # In float32 a product overflows if the incoming gradient is large, and two infinities cancel; else it is a pole.
    reached = dtype == "float16" or greatest > (_LARGE if state.infinite else _LARGE**2)
    operation = claim["operation"]
    overflowed = reached and operation not in _POLES
    made = "an infinity" if state.infinite else "NaN"
    summary = f"the derivative of {operation} gives {made} from finite gradients; the forward is finite"
    if overflowed:
        reaches = f"the largest gradient that reaches it is {greatest:.4g}"
        summary = f"the gradient of {operation} overflows {dtype}: {reaches}"
    return Origin(
        cause="overflow" if overflowed else "derivative",
        **claim,
        phase="backward",
        summary=summary,
        evidence={
            "derivative": node,
            "incoming": [facts(gradient, f"gradient {i}") for i, gradient in enumerate(incoming)],
            "outgoing": gave,
        },
        remedy=REMEDIES["gradient_overflow" if overflowed else "derivative"],
    )
