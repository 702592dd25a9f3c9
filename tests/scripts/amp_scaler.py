"""A plain loop with autocast and GradScaler: the first scale is too large, so its steps are skipped."""

import sys

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
inputs, targets = torch.randn(32, 16), torch.randint(0, 4, (32,))
if "planted" in sys.argv:
    inputs = inputs * 3e4
for _ in range(12):
    with torch.autocast("cpu", dtype=torch.float16):
        logits = model(inputs)  # HERE
        loss = nn.functional.cross_entropy(logits, targets)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
print("scale", scaler.get_scale(), "loss", loss.item())
