"""A trainer of one's own in the manner of Lightning: a module with steps and hooks, a trainer that calls them.

`left`: the validation batch is padded on the left.
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, hidden, allowed):
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(hidden).chunk(3, -1))
        return hidden + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).flatten(2))


class LanguageModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 32), nn.Linear(32, 50)
        self.blocks = nn.ModuleList(Block(32) for _ in range(2))

    def forward(self, ids, mask):
        hidden = self.embed(ids)
        allowed = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril() & mask[:, None, None, :].bool()
        for block in self.blocks:
            hidden = block(hidden, allowed)
        return self.head(hidden)

    def _loss(self, batch):
        ids, mask = batch
        logits = self(ids, mask)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids.masked_fill(mask == 0, -100)[:, 1:].flatten())

    def training_step(self, batch, index):
        return self._loss(batch)

    def validation_step(self, batch, index):
        return {"val_loss": self._loss(batch)}

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Trainer:
    def __init__(self, epochs):
        self.epochs, self.logged = epochs, []

    def fit(self, module, training, validation):
        (optimizer,), (schedule,) = module.configure_optimizers()
        for _ in range(self.epochs):
            module.train()
            for index, batch in enumerate(training):
                optimizer.zero_grad(set_to_none=True)
                module.training_step(batch, index).backward()
                nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                optimizer.step()
            schedule.step()
            module.eval()
            with torch.no_grad():
                self.logged += [module.validation_step(batch, index) for index, batch in enumerate(validation)]


torch.manual_seed(0)
ids, full = torch.randint(1, 50, (4, 12)), torch.ones(4, 12, dtype=torch.long)
mask = full.clone()
mask[1, slice(0, 5) if "left" in sys.argv else slice(7, 12)] = 0
trainer = Trainer(epochs=2)
trainer.fit(LanguageModule(), [(ids, full)] * 2, [(ids, mask)])  # HERE
print("val_loss", float(trainer.logged[-1]["val_loss"]))
