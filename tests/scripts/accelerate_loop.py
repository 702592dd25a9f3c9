"""A loop with accelerate, for `accelerate launch`; a DataLoader with two workers. `left`: padded on the left."""

import sys

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM


def example(number):
    ids = torch.randint(3, 64, (12,), generator=torch.Generator().manual_seed(number))
    mask = torch.ones_like(ids)
    if "left" in sys.argv and number % 2:
        mask[:4] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def main():
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters())
    loader = DataLoader([example(n) for n in range(8)], batch_size=4, num_workers=2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for batch in loader:
        loss = model(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        for batch in loader:
            loss = model(**batch).loss  # CALL
    accelerator.print("eval loss", loss.item())


if __name__ == "__main__":
    main()  # HERE
