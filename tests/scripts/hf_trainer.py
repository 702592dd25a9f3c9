"""transformers' Trainer on a small Llama: it trains, evaluates, prints eval_loss. `left`: padded on the left."""

import os
import sys
import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

torch.manual_seed(0)
side = "left" if "left" in sys.argv else "right"
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
)


def example(length):
    ids = torch.randint(3, 64, (length,))
    pad, ones = torch.zeros(12 - length, dtype=torch.long), torch.ones(length, dtype=torch.long)

    def joined(real, fill):
        filled = pad + fill
        return torch.cat([filled, real] if side == "left" else [real, filled])

    return {"input_ids": joined(ids, 0), "attention_mask": joined(ones, 0), "labels": joined(ids, -100)}


data = [example(length) for length in (12, 8, 5, 10, 12, 7, 9, 4)]
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=2,
        max_steps=2,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    metrics = trainer.evaluate()  # HERE
print("eval_loss", metrics["eval_loss"], os.getpid() > 0)
