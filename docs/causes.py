"""Examples of the causes that `mpsdiag trace` names; each is run when the site is built, and its answer is shown."""

from __future__ import annotations

_MODELS = {
    "dead_rows": (
        "return (x @ x.mT).masked_fill(~mask, -torch.inf).softmax(-1) @ x",
        {"x": "torch.randn(1, 4, 8)", "mask": "torch.ones(4, 4).tril(-1).bool()"},
    ),
    "bad_mask": (
        "return (x @ x.mT + (1 - mask) * -torch.inf).softmax(-1) @ x",
        {"x": "torch.randn(1, 4, 8)", "mask": "torch.ones(4, 4)"},
    ),
    "overflow": ("return x @ x.mT", {"x": "torch.full((1, 4, 8), 300.0, dtype=torch.float16)"}),
    "no_labels": (
        "return torch.nn.functional.cross_entropy(x, labels)",
        {"x": "torch.randn(4, 8)", "labels": "torch.full((4,), -100)"},
    ),
    "bad_weights": ("return self.layer(x)", {"x": "torch.randn(4, 8)"}),
    "bad_inputs": ("return self.layer(x)", {"x": "torch.full((4, 8), torch.nan)"}),
    "division_by_zero": (
        "return x.sum(1) / mask.sum(1, keepdim=True)",
        {"x": "torch.ones(2, 3, 4)", "mask": "torch.zeros(2, 3)"},
    ),
    "derivative": ('return {"loss": (0 * self.layer(x)).square().sum().sqrt()}', {"x": "torch.randn(4, 8)"}),
}
_LAYER = """    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)

"""
_BEFORE = {"bad_weights": "torch.nn.init.constant_(model.layer.weight, torch.nan)\n"}


def example(cause: str) -> str:
    """Code that shows a cause; empty for causes that need a device or a whole training run."""
    if cause not in _MODELS:
        return ""
    forward, batch = _MODELS[cause]
    values = ", ".join(f'"{name}": {value}' for name, value in batch.items())
    return (
        "import mpsdiag\nimport torch\n\n\nclass Model(torch.nn.Module):\n"
        f"{_LAYER if 'self.layer' in forward else ''}"
        f"    def forward(self, {', '.join(batch)}):\n        {forward}\n\n\n"
        f"model = Model()\n{_BEFORE.get(cause, '')}"
        f"batch = {{{values}}}\n"
        f"origin = mpsdiag.trace(model, batch{', train=True' if cause == 'derivative' else ''})\n"
    )


def answer(cause: str) -> tuple[str, str]:
    """Run an example; the cause that is found, and the printed text."""
    found: dict[str, object] = {}
    exec(compile(example(cause), cause, "exec"), found)  # noqa: S102 - our own examples
    origin = found["origin"]
    return getattr(origin, "cause", "none"), str(origin)
