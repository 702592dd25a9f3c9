"""A plain training and evaluation loop in torch: a small encoder, a padded batch, AdamW."""

import sys

import torch
import torch.nn.functional as F
from torch import nn


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.qkv = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))
        self.head = nn.Linear(32, 50)

    def forward(self, ids, mask):
        hidden = self.embed(ids)
        for layer in self.qkv:
            q, k, v = layer(hidden).view(*ids.shape, 3, 4, 8).permute(2, 0, 3, 1, 4)
            causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
            allowed = causal & mask[:, None, None, :].bool()
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
            hidden = hidden + attended.transpose(1, 2).flatten(2)
        return self.head(hidden)


def main():
    torch.manual_seed(0)
    model = Encoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(1, 50, (4, 12))
    mask = torch.ones_like(ids)
    if "padded" in sys.argv:
        mask[1, :5] = 0
    for _ in range(3):
        logits = model(ids, mask)
        loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        for _ in range(2):
            logits = model(ids, mask)  # CALL
    print("finite", bool(logits.isfinite().all()))


if __name__ == "__main__":
    main()  # HERE
