"""transformers' Seq2SeqTrainer on a small Bart, with generation. `planted`: one source text is empty."""

import sys
import tempfile

import torch
from tokenizers import Tokenizer, models
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

torch.manual_seed(0)
words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, 64)}
inner = Tokenizer(models.WordLevel(words, unk_token="<s>"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
config = BartConfig(
    vocab_size=64,
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=64,
    decoder_ffn_dim=64,
    max_position_embeddings=32,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=2,
    forced_eos_token_id=None,
)
model = BartForConditionalGeneration(config)


def example(source, target):
    ids = torch.randint(3, 64, (source,)).tolist()
    return {"input_ids": ids, "attention_mask": [1] * source, "labels": torch.randint(3, 64, (target,)).tolist()}


data = [example(n, m) for n, m in ((9, 5), (6, 3), (0 if "planted" in sys.argv else 4, 4), (7, 2))]
with tempfile.TemporaryDirectory() as folder:
    arguments = Seq2SeqTrainingArguments(
        folder,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        max_steps=1,
        predict_with_generate=True,
        generation_max_length=5,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    collator = DataCollatorForSeq2Seq(tokenizer, model)
    trainer = Seq2SeqTrainer(model, arguments, train_dataset=data, eval_dataset=data, data_collator=collator)
    print("eval_loss", trainer.evaluate()["eval_loss"])  # HERE
    trainer.train()
