"""A sentence-transformers training with evaluation: a decoder, pooled at the last token. `left`: padded on the left."""

import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
)
from sentence_transformers.models import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2Model

torch.manual_seed(0)
words = ["<pad>", "<eos>", *[f"w{number}" for number in range(62)]]
inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<eos>"))
inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
side = "left" if "left" in sys.argv else "right"
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", padding_side=side, model_max_length=32
)
config = Qwen2Config(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=0,
)


def text(length):
    return " ".join(f"w{number % 62}" for number in range(length, 2 * length))


with tempfile.TemporaryDirectory() as folder:
    Qwen2Model(config).save_pretrained(Path(folder) / "model")
    tokenizer.save_pretrained(Path(folder) / "model")
    transformer = Transformer(str(Path(folder) / "model"))
    transformer.processor = tokenizer
    model = SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode="lasttoken")], device="cpu")
    data = Dataset.from_dict({"anchor": [text(n) for n in (9, 4)], "positive": [text(n) for n in (5, 12)]})
    arguments = SentenceTransformerTrainingArguments(
        str(Path(folder) / "out"),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        max_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    loss = losses.MultipleNegativesRankingLoss(model)
    trainer = SentenceTransformerTrainer(model, arguments, train_dataset=data, eval_dataset=data, loss=loss)
    trainer.train()  # HERE
    print("vector", float(model.encode(text(6))[0]))
