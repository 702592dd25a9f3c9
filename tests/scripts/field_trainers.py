"""Trainers of other libraries: `sft` of TRL, or `peft`; then `left` or `right`, the side of the padding."""

import sys
import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

kind, side = sys.argv[1], sys.argv[2]
torch.manual_seed(0)
words = ["<pad>", "<eos>", *[f"w{number}" for number in range(62)]]
inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<eos>"))
inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", padding_side=side)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
)


def text(length):
    return " ".join(f"w{number % 62}" for number in range(length, 2 * length))


common = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "max_steps": 2,
    "report_to": [],
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}
with tempfile.TemporaryDirectory() as folder:
    if kind == "sft":
        from trl import SFTConfig, SFTTrainer

        data = Dataset.from_list([{"text": text(n)} for n in (12, 5, 8, 3)])
        trainer = SFTTrainer(
            model, args=SFTConfig(folder, **common), train_dataset=data, eval_dataset=data, processing_class=tokenizer
        )
    else:
        from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

        if kind == "peft":
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
        data = [tokenizer(text(n), return_token_type_ids=False) for n in (12, 5, 8, 3)]
        trainer = Trainer(
            model,
            TrainingArguments(folder, **common),
            train_dataset=data,
            eval_dataset=data,
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        )
    trainer.train()
    print("eval_loss", trainer.evaluate()["eval_loss"])  # HERE
