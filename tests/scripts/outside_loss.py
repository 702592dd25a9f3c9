"""A loss outside the model.

`unlabelled` masks every label, `root` has the derivative of a root at zero, `rate` diverges, `catches` goes on after
any exception, `exit` ends with code 7, `hand` updates the weights by hand.
"""

import sys

import torch
from torch import nn

torch.manual_seed(0)
what = sys.argv[1] if len(sys.argv) > 1 else ""
model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 5))
optimizer = torch.optim.SGD(model.parameters(), lr=3e38 if what == "rate" else 0.1)
inputs, targets = torch.randn(16, 8), torch.randint(0, 5, (16,))
if what == "unlabelled":
    targets[:] = -100
for step in range(4):
    try:
        if what in ("catches", "exit", "hand") and step == 2:
            inputs[3, 2] = float("nan")
        logits = model(inputs)  # HERE
        loss = nn.functional.cross_entropy(logits, targets)
        if what == "root":
            loss = loss + (logits - logits.detach()).square().sum().sqrt()
        if what == "rate":
            loss = loss * 100
        optimizer.zero_grad()
        loss.backward()
        if what == "hand":
            with torch.no_grad():
                for weight in model.parameters():
                    weight.sub_(0.1 * weight.grad)
        else:
            optimizer.step()
    except BaseException as problem:  # noqa: BLE001 - as people write it
        print("caught", type(problem).__name__)
print("loss", loss.item())
if what in ("exit", "exit-clean"):
    sys.exit(7)
