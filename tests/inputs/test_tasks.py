"""What a model is for decides its class, its batches, its labels and what of its output counts."""

import importlib
import json

import pytest
import torch
import transformers
from torch.nn import functional

from mpsdiag import emulate_mps
from mpsdiag.errors import BadInput
from mpsdiag.inputs.batches import LABELS, pooled, sees_both_ways
from mpsdiag.inputs.builtin import byte_tokenizer
from mpsdiag.inputs.models import build_model, model_notes, uses_sdpa
from mpsdiag.inputs.names import transformer_folder
from mpsdiag.inputs.nonfinite import unread_nonfinite
from mpsdiag.inputs.tasks import ALL_TASKS, task_of
from mpsdiag.words import TASKS

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 259, "pad_token_id": 0}
BUILT_IN = {
    "tiny-llama": ("text-generation", "LlamaForCausalLM"),
    "tiny-bert": ("fill-mask", "BertForMaskedLM"),
    "tiny-bart": ("text2text-generation", "BartForConditionalGeneration"),
    "tiny-t5": ("text2text-generation", "T5ForConditionalGeneration"),
    "tiny-embedder": ("feature-extraction", "Qwen2Model"),
    "tiny-vlm": ("image-text-to-text", "LlavaForConditionalGeneration"),
}


def classifier(kind="BertForSequenceClassification", **options):
    config = transformers.BertConfig(**SMALL, intermediate_size=32, **options)
    torch.manual_seed(0)
    return getattr(transformers, kind)(config).eval()


TEXTS = ["a heron paints", "rain", "my neighbour counts seven letters", "the lamp answers"]


def batch_of(task, model, side="left"):
    tokenizer = byte_tokenizer(side)
    rows = task.rows(TEXTS, tokenizer, 48, config=model.config)
    return task.collator(tokenizer, model)(rows)


def run(task, model, batch):
    with torch.no_grad():
        if task.loss is None:
            output = model(**batch)
            return task.compared(output), output.loss
        inputs = dict(batch)
        labels = inputs.pop("labels")
        output = model(**inputs)
        return task.compared(output), task.loss(output, labels)


def test_the_tasks_are_those_of_the_contract():
    assert set(ALL_TASKS) == set(TASKS)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.needs(transformers="5.1")] if name == "tiny-t5" else [])
        for name in BUILT_IN  # T5 has no SDPA up to 4.57
    ],
)
def test_built_in_models_of_every_kind(name):
    model = build_model(name, max_positions=64)
    task = task_of(model.config, name=name)
    assert (task.name, type(model).__name__) == BUILT_IN[name]
    assert uses_sdpa(model)
    assert model_notes(model) == []


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_batch_gives_a_loss_and_one_output_a_real_position(name, side):
    model = build_model(name, max_positions=64)
    task = task_of(model.config, name=name)
    batch = batch_of(task, model, side)
    output, loss = run(task, model, batch)
    real = task.real(batch)
    assert output.shape[:2] == real.shape
    assert torch.isfinite(loss)
    assert torch.isfinite(output[real]).all()
    assert real.any(-1).all()
    assert not real.all(), "some of it is padding"


@pytest.mark.parametrize("name", BUILT_IN)
def test_where_the_emulated_defect_strikes(name):
    """A left-padded decoder, whatever its head; an encoder sees both ways and is spared."""
    model = build_model(name, max_positions=64)
    task = task_of(model.config, name=name)
    batch = batch_of(task, model)
    with emulate_mps("2.8"):
        output, _ = run(task, model, batch)
    struck = not bool(torch.isfinite(output[task.real(batch)]).all())
    assert struck is not sees_both_ways(model.config)


@pytest.mark.parametrize(
    ("kind", "options", "labels"),
    [
        ("BertForSequenceClassification", {"num_labels": 3}, torch.int64),
        ("BertForSequenceClassification", {"num_labels": 1}, torch.float32),
        (
            "BertForSequenceClassification",
            {"num_labels": 4, "problem_type": "multi_label_classification"},
            torch.float32,
        ),
        ("BertForTokenClassification", {"num_labels": 5}, torch.int64),
    ],
)
def test_classifiers_have_labels_of_their_kind(kind, options, labels):
    model = classifier(kind, **options)
    model.config.architectures = [kind]
    task = task_of(model.config)
    batch = batch_of(task, model, "right")
    output, loss = run(task, model, batch)
    assert batch["labels"].dtype == labels
    assert torch.isfinite(loss)
    assert output.shape[:2] == task.real(batch).shape
    assert output.shape[-1] == options["num_labels"]


def test_masked_language_models_see_no_token_that_they_are_asked_for():
    model = build_model("tiny-bert", max_positions=64)
    batch = batch_of(ALL_TASKS["fill-mask"], model)
    asked = batch["labels"] != -100
    assert asked.any(-1).all()
    assert (batch["input_ids"][asked] == 2).all()
    assert (batch["attention_mask"][asked] == 1).all()


def test_the_embedding_of_a_decoder_is_its_last_token_and_of_an_encoder_the_mean():
    for name, expected in (
        ("tiny-embedder", lambda hidden, mask: hidden[:, -1]),
        ("tiny-bert", lambda hidden, mask: (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(-1, keepdim=True)),
    ):
        model = build_model(name, max_positions=64, task="feature-extraction")
        batch = batch_of(ALL_TASKS["feature-extraction"], model)
        weights = batch.pop("labels")
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state
        torch.testing.assert_close(
            pooled(hidden, weights), functional.normalize(expected(hidden, batch["attention_mask"]), dim=-1)
        )


HIDDEN = torch.tensor([[[9.0, 9.0], [1.0, -4.0], [3.0, -1.0]], [[2.0, 0.0], [5.0, -3.0], [1.0, 8.0]]])
REAL = torch.tensor([[0, 1, 1], [1, 1, 1]])
POOLED = {
    "cls": [[1, -4], [2, 0]],
    "lasttoken": [[3, -1], [1, 8]],
    "max": [[3, -1], [5, 8]],
    "mean": [[2, -2.5], [8 / 3, 5 / 3]],
    "mean_sqrt_len_tokens": [[4 / 2**0.5, -5 / 2**0.5], [8 / 3**0.5, 5 / 3**0.5]],
    "weightedmean": [[7 / 3, -2], [15 / 6, 3]],
}


def embedder_folder(folder, pooling):
    build_model("tiny-embedder", max_positions=64).save_pretrained(folder)
    byte_tokenizer("left").save_pretrained(folder)
    parts = [
        {"path": "", "type": "x.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(parts))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(pooling if isinstance(pooling, str) else json.dumps(pooling))
    return str(folder)


@pytest.mark.parametrize("ways", [*((way,) for way in POOLED), ("max", "mean")])
def test_an_embedding_is_pooled_as_its_folder_says(tmp_path, ways):
    older = {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True, "pooling_mode_cls_token": False}
    settings = older if len(ways) == 2 else {"pooling_mode": ways[0]}
    model = build_model(embedder_folder(tmp_path, settings), from_config=False)
    batch = {"attention_mask": REAL}
    LABELS["feature-extraction"](batch, given=[], tokenizer=None, model=model)
    expected = torch.cat([torch.tensor(POOLED[way], dtype=torch.float32) for way in ways], -1)
    torch.testing.assert_close(pooled(HIDDEN, batch["labels"]), functional.normalize(expected, dim=-1))


@pytest.mark.parametrize("ways", [*POOLED, ("max", "mean"), ("lasttoken", "weightedmean", "cls")])
def test_a_folder_of_sentence_transformers_gives_the_embeddings_that_it_gives(tmp_path, ways):
    st = pytest.importorskip("sentence_transformers")
    modules = importlib.import_module("sentence_transformers.sentence_transformer.modules")
    build_model("tiny-embedder", max_positions=64).save_pretrained(tmp_path)
    byte_tokenizer("left").save_pretrained(tmp_path)
    transformer = modules.Transformer(str(tmp_path))
    transformer.processor = byte_tokenizer("left")
    parts = [transformer, modules.Pooling(64, pooling_mode=ways), modules.Normalize()]
    whole = st.SentenceTransformer(modules=parts, device="cpu")
    whole.save(str(tmp_path / "saved"), create_model_card=False)
    model = build_model(str(tmp_path / "saved"), from_config=False)
    batch = batch_of(ALL_TASKS["feature-extraction"], model)
    weights = batch.pop("labels")
    with torch.no_grad():
        mine = pooled(model(**batch).last_hidden_state, weights)
    torch.testing.assert_close(mine, torch.tensor(whole.encode(TEXTS)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("pooling", "sentence"),
    [
        ("{", "Cannot read the pooling of"),
        ("[1]", "Cannot read the pooling of"),
        ({"pooling_mode": "men"}, "Did you mean 'mean'"),
        ({"pooling_mode": [3]}, "pooling mode '3'"),
    ],
)
def test_a_pooling_that_cannot_be_read_is_one_sentence(tmp_path, pooling, sentence):
    with pytest.raises(BadInput, match=sentence):
        build_model(embedder_folder(tmp_path, pooling), from_config=False)


@pytest.mark.parametrize("pooling", ["max", "cls"])
def test_an_embedder_of_another_pooling_is_right_on_the_cpu(tmp_path, pooling):
    folder = embedder_folder(tmp_path, {"pooling_mode": pooling})
    model = build_model(folder, from_config=False)
    task = ALL_TASKS["feature-extraction"]
    _, loss = run(task, model, batch_of(task, model))
    _, last = run(task, build_model("tiny-embedder", max_positions=64), batch_of(task, build_model("tiny-embedder")))
    assert torch.isfinite(loss)
    assert float(loss) != float(last)


def test_an_embedding_is_finite_where_padding_is_not():
    weights = torch.tensor([[0.0, 1.0]])
    hidden = torch.tensor([[[torch.nan, 1.0], [3.0, 4.0]]])
    assert pooled(hidden, weights).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]


@pytest.mark.parametrize(
    ("config", "task"),
    [
        (transformers.LlamaConfig(architectures=["LlamaForSequenceClassification"]), "text-classification"),
        (transformers.LlamaConfig(architectures=["LlamaModel"]), "feature-extraction"),
        (transformers.LlamaConfig(), "text-generation"),
        (transformers.BertConfig(), "text-generation"),
        (transformers.T5Config(), "text2text-generation"),
        (transformers.LlamaConfig(architectures=["MyOwnForCausalLM"]), "text-generation"),
        (transformers.Gemma3Config(architectures=["Gemma3ForConditionalGeneration"]), "image-text-to-text"),
    ],
)
def test_the_architecture_decides(config, task):
    assert task_of(config).name == task


def test_an_architecture_of_no_task_is_named():
    config = transformers.BertConfig(architectures=["BertForMultipleChoice"])
    with pytest.raises(BadInput, match="is a BertForMultipleChoice, which has none of the tasks known here"):
        task_of(config, name="mine")
    with pytest.raises(BadInput, match=r"Unknown task 'fill-masks'\. Did you mean 'fill-mask'"):
        task_of(config, "fill-masks")


# Checkpoints.


def test_the_class_of_the_checkpoint_is_loaded_with_all_its_weights(tmp_path):
    model = classifier(num_labels=3)
    model.save_pretrained(tmp_path)
    again = build_model(str(tmp_path), from_config=False)
    assert type(again) is type(model)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    assert model_notes(again) == []


def test_a_folder_of_one_task_given_as_another_is_one_sentence(tmp_path):
    build_model("tiny-llama", max_positions=32).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"is a LlamaForCausalLM, not a model for text-classification") as caught:
        build_model(str(tmp_path), from_config=False, task="text-classification")
    assert "lacks weights of score (1 tensor). Leave out --task" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_read_are_named(tmp_path):
    build_model("tiny-llama", max_positions=32).save_pretrained(tmp_path)
    model = build_model(str(tmp_path), from_config=False, task="feature-extraction")
    assert model_notes(model) == ["LlamaModel does not read the checkpoint's weights of lm_head (1 tensor)"]


def test_a_weight_that_is_not_read_and_not_finite_is_named(tmp_path):
    model = build_model("tiny-llama", max_positions=32)
    with torch.no_grad():
        model.lm_head.weight[3, 0] = torch.inf
    model.save_pretrained(tmp_path)
    names, sentence = unread_nonfinite(build_model(str(tmp_path), from_config=False, task="feature-extraction"))
    assert names == ("lm_head.weight",)
    assert "holds NaN or infinity in weights that LlamaModel does not read: lm_head.weight" in sentence
    assert unread_nonfinite(model) == ((), "")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_without_sdpa_is_loaded_with_the_attention_it_has(tmp_path, attention):
    model = transformers.BloomForCausalLM(transformers.BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=64))
    model.save_pretrained(tmp_path)
    again = build_model(str(tmp_path), from_config=False, attention=attention)
    assert again.config._attn_implementation == "eager"
    assert not uses_sdpa(again)
    assert "has only eager attention" in model_notes(again)[0]


def test_a_model_that_calls_sdpa_itself_uses_it():
    config = transformers.FalconConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
    assert uses_sdpa(transformers.FalconForCausalLM(config))


def test_the_transformer_inside_a_sentence_transformers_folder(tmp_path):
    inner = tmp_path / "0_Transformer"
    build_model("tiny-embedder", max_positions=32).save_pretrained(inner)
    (tmp_path / "modules.json").write_text(json.dumps([{"path": "0_Transformer"}, {"path": "1_Pooling"}]))
    assert transformer_folder(str(tmp_path)) == str(inner)
    assert type(build_model(str(tmp_path), from_config=False)).__name__ == "Qwen2Model"
    (tmp_path / "modules.json").write_text(json.dumps([{"path": "../elsewhere"}]))
    assert transformer_folder(str(tmp_path)) == str(tmp_path)
