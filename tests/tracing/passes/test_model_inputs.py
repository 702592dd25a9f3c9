"""Whatever a model takes, the trace takes; what it refuses comes back with its sentence, the keys and the shapes."""

import pytest
import torch
import transformers as hf
from torch import nn

from mpsdiag import trace
from mpsdiag.errors import BadInput, CannotDecide

SIZES = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = {**SIZES, "intermediate_size": 32, "max_position_embeddings": 24}


def seeded(model_class, config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model_class(config).eval()


def t5():
    config = hf.T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0)
    config.decoder_start_token_id = 0
    return seeded(hf.T5ForConditionalGeneration, config)


def bart():
    sides = {
        f"{side}_{name}": n
        for side in ("encoder", "decoder")
        for name, n in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))
    }
    config = hf.BartConfig(vocab_size=60, d_model=16, max_position_embeddings=32, **sides)
    config.pad_token_id, config.decoder_start_token_id = 0, 2
    return seeded(hf.BartForConditionalGeneration, config)


def source(length=9):
    ids = torch.randint(3, 60, (2, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, length - 3 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


class HandsOn(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, **batch):
        return self.inner(**batch)


def encoder_outputs():
    model, batch = bart(), source()
    with torch.no_grad():
        encoded = model.get_encoder()(**batch)
    return model, {"encoder_outputs": encoded, "attention_mask": batch["attention_mask"], "labels": batch["input_ids"]}


def clip():
    text = {**SIZES, "intermediate_size": 32, "max_position_embeddings": 16, "eos_token_id": 2}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4}
    config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    return seeded(hf.CLIPModel, config), {**source(), "pixel_values": torch.zeros(2, 3, 8, 8), "return_loss": True}


TAKEN = {
    "T5, targets of another length": lambda: (t5(), {**source(), "labels": source(5)["input_ids"]}),
    "BART, encoder_outputs": encoder_outputs,
    "several labels at once": lambda: (
        seeded(hf.BertForSequenceClassification, hf.BertConfig(**BERT, num_labels=3)),
        {**source(), "labels": torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])},
    ),
    "regression, labels (B, 1)": lambda: (
        seeded(hf.BertForSequenceClassification, hf.BertConfig(**BERT, num_labels=1)),
        {**source(), "labels": torch.tensor([[0.5], [3.0]])},
    ),
    "multiple choice": lambda: (
        seeded(hf.BertForMultipleChoice, hf.BertConfig(**BERT)),
        {"input_ids": torch.randint(3, 60, (2, 3, 7)), "labels": torch.tensor([2, 0])},
    ),
    "questions": lambda: (
        seeded(hf.BertForQuestionAnswering, hf.BertConfig(**BERT)),
        {**source(), "start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])},
    ),
    "a wrapper with **batch": lambda: (HandsOn(t5()), {**source(), "labels": source(5)["input_ids"]}),
    "DataParallel": lambda: (nn.DataParallel(t5()), {**source(), "labels": source(5)["input_ids"]}),
    "CLIP": clip,
}


@pytest.mark.parametrize("case", TAKEN)
@pytest.mark.parametrize("train", [False, True])
def test_what_the_model_takes_is_taken(case, train):
    model, batch = TAKEN[case]()
    assert trace(model, batch, train=train) is None


@pytest.mark.parametrize("make", [t5, bart])
def test_targets_that_are_all_ignored(make):
    origin = trace(make(), {**source(), "labels": torch.full((2, 5), -100)})
    assert (origin.cause, origin.operation) == ("no_labels", "cross_entropy")


def test_a_broken_weight_on_either_side_is_named_with_the_layer_of_its_own_side():
    for side, layer in (("encoder", 1), ("decoder", 1), ("decoder", 0)):
        model = bart()
        with torch.no_grad():
            getattr(model.model, side).layers[layer].fc1.weight[0, 0] = float("nan")
        origin = trace(model, {**source(), "labels": source(5)["input_ids"]})
        assert (origin.cause, origin.layer) == ("bad_weights", layer)
        assert origin.module == f"model.{side}.layers.{layer}.fc1"


def test_a_cache_and_a_batch_that_is_written_into_are_the_same_in_every_pass():
    class Greedy(nn.Module):
        """Appends to the cache it is given, masks its labels in place, and divides by what is in neither."""

        def forward(self, x, labels, cache):
            cache.append(x)
            labels.sub_(1)
            return {"loss": (x / (len(cache) - 1 + labels.sum())).sum()}

    labels, cache = torch.ones(3), []
    origin = trace(Greedy(), {"x": torch.ones(2), "labels": labels, "cache": cache})
    assert (origin.cause, origin.operation) == ("division_by_zero", "div")
    assert (labels.tolist(), cache) == ([1.0, 1.0, 1.0], [])


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        ({"input_idz": 1}, BadInput, "Did you mean 'input_ids'"),
        ({"labels": torch.zeros(3, 9, dtype=torch.long)}, BadInput, "labels (3, 9) int64"),
        ({"position_ids": torch.zeros(5, 5, dtype=torch.long)}, CannotDecide, "position_ids (5, 5) int64"),
        ({"attention_mask": torch.ones(2, 4)}, BadInput, "does not cover 'input_ids'"),
    ],
)
def test_a_refusal_passes_on_the_sentence_keys_and_shapes(change, kind, sentence):
    model = seeded(hf.BertForTokenClassification, hf.BertConfig(**BERT, num_labels=4))
    batch = {**source(), **change}
    if "input_idz" in change:
        batch["input_idz"] = batch.pop("input_ids")
    with pytest.raises(kind) as refusal:
        trace(model, batch)
    assert sentence in str(refusal.value)
    assert "attention_mask (2, " in str(refusal.value)


def test_a_slip_in_a_key_that_the_model_swallows_is_pointed_out(caplog):
    batch = source()
    model = seeded(hf.LlamaForCausalLM, hf.LlamaConfig(**SIZES, intermediate_size=32))
    assert trace(model, {**batch, "lables": batch["input_ids"]}) is None
    assert "no argument 'lables'. Did you mean 'labels'?" in caplog.text


def test_an_argument_that_the_forward_does_not_have():
    with pytest.raises(BadInput) as refusal:
        trace(nn.Linear(3, 3), {"inputs": torch.zeros(2, 3)})
    assert "unexpected keyword argument 'inputs'" in str(refusal.value)
    assert "Did you mean 'input'? The batch has inputs (2, 3) float32." in str(refusal.value)


class Small(nn.Module):
    def __init__(self, line):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(60, 8, sparse=True), nn.Linear(8, 4)
        self.line = line

    def forward(self, features):
        hidden = self.head(self.table(features["input_ids"]))
        return {**features, "loss": self.line(hidden), "hidden": hidden}


def test_a_model_that_takes_the_whole_batch_as_one_argument():
    clean = Small(lambda hidden: hidden.sum())
    assert trace(clean, source(), train=True) is None  # With gradients that are sparse.
    origin = trace(Small(lambda hidden: hidden.sum() / 0), source())
    assert (origin.cause, origin.operation) == ("division_by_zero", "div")
    assert trace(clean, {"features": source()}) is None


@pytest.mark.parametrize("train", [False, True])
def test_a_loss_of_each_device(train):
    assert trace(Small(lambda hidden: hidden.sum().repeat(2)), source(), train=train) is None
    origin = trace(Small(lambda hidden: torch.stack([hidden.sum(), hidden.sum() / 0])), source(), train=train)
    assert (origin.cause, origin.operation) == ("division_by_zero", "div")


def test_a_cache_with_a_history(cache_name):
    model = seeded(hf.LlamaForCausalLM, hf.LlamaConfig(**SIZES, intermediate_size=32))
    batch = source()
    cache = model(input_ids=batch["input_ids"][:, :4], use_cache=True)[cache_name]
    given = {"input_ids": batch["input_ids"][:, 4:], "attention_mask": batch["attention_mask"], cache_name: cache}
    assert trace(model, given) is None
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    assert trace(model, given).module == "lm_head"
    assert cache.get_seq_length() == 4


def test_complex_values_are_followed():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return torch.fft.fft(self.inner(x), dim=-1).real

    model = Mixed()
    with torch.no_grad():
        model.inner.weight[1, 1] = float("nan")
    origin = trace(model, {"x": torch.ones(2, 4)})
    assert (origin.cause, origin.module) == ("bad_weights", "inner")
