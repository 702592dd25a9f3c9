"""Text generation with sampling, for prompts padded on the left; the layers of one model are compiled."""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
)
model = LlamaForCausalLM(config).eval()
if "compile" in sys.argv:
    model.forward = torch.compile(model.forward, backend="eager")
ids = torch.randint(3, 64, (2, 9))
mask = torch.ones_like(ids)
if "left" in sys.argv:
    mask[1, :4] = 0
answer = model.generate(  # HERE
    input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=True, top_k=0, pad_token_id=0
)
print("tokens", answer[:, 9:].numel())
