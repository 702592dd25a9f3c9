"""`train --mode evaluate` on models of every task, and labels that a classifier cannot take."""

import json
import math

import pytest
import transformers

from mpsdiag.errors import BadInput
from mpsdiag.inputs.builtin import byte_tokenizer
from mpsdiag.training.pipeline import main


@pytest.fixture
def evaluate(tmp_path, capsys):
    text = tmp_path / "lines.txt"
    text.write_text("rain\nmy neighbour counts seven letters\nthe lamp answers\na heron\n", encoding="utf-8")

    def go(model, *words, dataset=text):
        given = ["--mode", "evaluate", "--model", model, "--dataset", dataset, "--output_dir", tmp_path / "out"]
        code = main([*map(str, given), "--device", "cpu", "--disable_tqdm", "true", *words])
        summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
        return code, summary, capsys.readouterr().err

    return go


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-bart", "tiny-t5", "tiny-embedder", "tiny-vlm"])
def test_every_task_is_evaluated(evaluate, model):
    code, summary, shown = evaluate(model)
    assert code == 0
    assert math.isfinite(summary["eval_loss"])
    assert summary["nonfinite"]["eval_batches"] == 0
    assert "has no labels for" in shown


@pytest.mark.parametrize("model", ["tiny-embedder", "tiny-vlm"])
def test_under_emulation_the_fix_has_the_loss_of_the_plain_cpu(evaluate, model):
    _, plain, _ = evaluate(model)
    code, fixed, _ = evaluate(model, "--emulate", "2.8", "--attn_implementation", "safe_sdpa")
    assert code == 0
    assert fixed["eval_loss"] == pytest.approx(plain["eval_loss"], rel=1e-5)
    *_, broken = evaluate(model, "--emulate", "2.8", "--disable_mps_fix")[:2]
    assert broken["eval_loss"] == "nan"


def test_only_causal_language_models_are_trained(tmp_path):
    with pytest.raises(BadInput, match=r"'tiny-bert' is a model for fill-mask; .* Use --mode evaluate"):
        main(["--model", "tiny-bert", "--output_dir", str(tmp_path), "--device", "cpu"])


@pytest.fixture
def classifier(tmp_path):
    config = transformers.BertConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    folder = tmp_path / "classifier"
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    byte_tokenizer("right").save_pretrained(folder)
    return folder


def labelled(folder, *labels):
    file = folder / "rows.jsonl"
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def test_a_classifier_is_evaluated_on_the_labels_of_the_data(evaluate, classifier, tmp_path):
    _, one, shown = evaluate(classifier, dataset=labelled(tmp_path, 0, 1, 2))
    assert "has no labels" not in shown
    _, named, _ = evaluate(classifier, dataset=labelled(tmp_path, "LABEL_0", "LABEL_1", "LABEL_2"))
    _, other, _ = evaluate(classifier, dataset=labelled(tmp_path, 2, 2, 2))
    assert one["eval_loss"] == named["eval_loss"] != other["eval_loss"]


MIXED = pytest.mark.needs(datasets="4.7")  # Older ones refuse a column of mixed types.


@pytest.mark.parametrize(
    "label", [3, -1, 0.5, None, *(pytest.param(label, marks=MIXED) for label in ("good", True, [1, 2]))]
)
def test_a_label_of_a_wrong_type_is_one_sentence(evaluate, classifier, tmp_path, label):
    with pytest.raises(BadInput, match=r"is not one of the model's: give a whole number from 0 to 2") as caught:
        evaluate(classifier, dataset=labelled(tmp_path, 0, label))
    assert "\n" not in str(caught.value)


def test_a_processor_that_is_missing_is_one_sentence(evaluate, tmp_path):
    from mpsdiag.inputs.models import build_model

    folder = tmp_path / "vlm"
    build_model("tiny-vlm", max_positions=64).save_pretrained(folder)
    byte_tokenizer("left").save_pretrained(folder)
    with pytest.raises(BadInput, match=r"which handles its pictures.*processor\.save_pretrained") as caught:
        evaluate(folder)
    assert "\n" not in str(caught.value)
