"""Log-likelihoods of continuations in batches, as evaluation harnesses compute them. `left`: padded on the left."""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM


class Harness:
    def __init__(self, side):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        )
        self.model, self.side = LlamaForCausalLM(config).eval(), side

    def padded(self, rows):
        longest = max(map(len, rows))
        fill = [[0] * (longest - len(row)) for row in rows]
        pairs = [(pad, row) if self.side == "left" else (row, pad) for pad, row in zip(fill, rows, strict=True)]
        mask = [[int(part is not pad) for part in pair for _ in part] for pair, pad in zip(pairs, fill, strict=True)]
        return torch.tensor([[*a, *b] for a, b in pairs]), torch.tensor(mask)

    @torch.inference_mode()
    def loglikelihood(self, requests):
        answers = []
        for start in range(0, len(requests), 2):
            chunk = requests[start : start + 2]
            ids, mask = self.padded([context + continuation for context, continuation in chunk])
            logits = self.model(ids, attention_mask=mask).logits.log_softmax(-1)
            for row, (context, continuation) in enumerate(chunk):
                first = len(context) - 1
                if self.side == "left":
                    first += ids.shape[1] - len(context) - len(continuation)
                chosen = logits[row, first : first + len(continuation)].gather(-1, torch.tensor(continuation)[:, None])
                answers.append(float(chosen.sum()))
        return answers


harness = Harness("left" if "left" in sys.argv else "right")
requests = [(list(range(3, 3 + n)), [20 + n, 30 + n]) for n in (9, 4, 7, 2)]
print("acc", sum(answer > -9 for answer in harness.loglikelihood(requests)) / len(requests))  # HERE
