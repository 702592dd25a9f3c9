"""Trainers of other libraries on a small Llama: `sft`, `dpo` or `grpo` of TRL, `peft`; then `planted` or `clean`.

Planted is padding on the left, in the evaluation; GRPO pads prompts of several lengths on the left by itself.
"""

import sys
import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

kind, planted = sys.argv[1], sys.argv[2] == "planted"
torch.manual_seed(0)
words = ["<pad>", "<eos>", *[f"w{number}" for number in range(62)]]
inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<eos>"))
inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
side = "left" if planted or kind == "grpo" else "right"
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", padding_side=side)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
)
model = LlamaForCausalLM(config)


def text(length, start=0):
    return " ".join(f"w{number % 62}" for number in range(start + length, start + 2 * length))


common = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "max_steps": 1,
    "report_to": [],
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}
of_trl = {**common, "bf16": False, "gradient_checkpointing": False}


def turned(collator):
    """The same batches padded on the left, as a collator of one's own may do."""

    def collate(rows):
        batch = dict(collator(rows))
        pads = (batch["attention_mask"] == 0).sum(1).tolist()
        for name, tensor in batch.items():
            if tensor.shape == batch["attention_mask"].shape and name != "attention_mask":
                batch[name] = torch.stack([row.roll(pad) for row, pad in zip(tensor, pads, strict=True)])
        mask = batch["attention_mask"]
        batch["attention_mask"] = torch.stack([row.roll(pad) for row, pad in zip(mask, pads, strict=True)])
        return batch

    return collate


def trainer_of(folder):
    if kind == "sft":
        from trl import SFTConfig, SFTTrainer

        data = Dataset.from_list([{"prompt": text(n), "completion": f" {text(4, n)}"} for n in (3, 9, 4, 7)])
        args = SFTConfig(folder, **of_trl)
        found = SFTTrainer(model, args=args, train_dataset=data, eval_dataset=data, processing_class=tokenizer)
        found.data_collator = turned(found.data_collator) if planted else found.data_collator
        return found
    if kind == "dpo":
        from trl import DPOConfig, DPOTrainer

        rows = [{"prompt": text(n), "chosen": f" {text(5, n)}", "rejected": f" {text(9 - n, 3)}"} for n in (3, 6, 4, 8)]
        data, args = Dataset.from_list(rows), DPOConfig(folder, **of_trl)
        reference = LlamaForCausalLM(config)
        found = DPOTrainer(model, reference, args, train_dataset=data, eval_dataset=data, processing_class=tokenizer)
        found.data_collator = turned(found.data_collator) if planted else found.data_collator
        return found
    if kind == "grpo":
        from trl import GRPOConfig, GRPOTrainer

        data = Dataset.from_list([{"prompt": text(n if planted else 5)} for n in (2, 4, 6, 8)])
        args = GRPOConfig(folder, **{**of_trl, "per_device_train_batch_size": 4}, num_generations=2, beta=0.0)
        args.max_completion_length = 3
        return GRPOTrainer(
            model,
            reward_funcs=lambda completions, **_: [float(len(one)) for one in completions],
            args=args,
            train_dataset=data,
            processing_class=tokenizer,
        )
    from peft import LoraConfig, get_peft_model
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    data = [tokenizer(text(n), return_token_type_ids=False) for n in (12, 5, 8, 3)]
    return Trainer(
        get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], r=2)),
        TrainingArguments(folder, **common, label_names=["labels"]),
        train_dataset=data,
        eval_dataset=data,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )


with tempfile.TemporaryDirectory() as folder:
    trainer = trainer_of(folder)
    if kind == "grpo":
        trainer.train()  # TRAIN
    else:
        print("eval_loss", trainer.evaluate()["eval_loss"])  # HERE
