"""MPSSafeTrainer mixed with the Trainers that people use: the same numbers as theirs, and no name of theirs taken."""

import importlib
import math
from pathlib import Path

import pytest
import torch
import transformers
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer

from mpsdiag import emulate_mps, install
from mpsdiag.inputs.builtin import byte_tokenizer
from mpsdiag.inputs.models import build_model
from mpsdiag.inputs.tasks import ALL_TASKS
from mpsdiag.trainers.mps_safe import MPSSafeTrainer
from mpsdiag.trainers.second_pass import CpuModels, remember_counts

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL and sentence-transformers warn of their own future.
QUIET = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "per_device_eval_batch_size": 2,
    "per_device_train_batch_size": 2,
    "save_strategy": "no",
}
TEXTS = ["a heron paints", "rain", "my neighbour counts seven letters", "the lamp answers"]


def measured(metrics):
    kept = ("loss", "rewards", "logps", "accuracy", "margin")
    return {name: value for name, value in metrics.items() if any(word in name for word in kept)}


def compare(make, kind):
    """Stock on the CPU; ours there; ours with the emulated defect."""
    mixed = type("Mixed", (MPSSafeTrainer, kind), {})
    stock = measured(make(kind).evaluate())
    ours = make(mixed)
    ours.always = True
    assert measured(ours.evaluate()) == stock
    assert all(math.isfinite(value) for value in stock.values())
    with emulate_mps("2.8"):
        trainer = make(mixed)
        found = trainer.evaluate()
    assert measured(found) == pytest.approx(stock, rel=1e-4)
    return found


def test_private_names_have_a_prefix_that_nobody_has():
    own = {name for name in vars(MPSSafeTrainer) if name.startswith("_") and not name.startswith("__")}
    assert {name for name in own if not name.startswith("_mps_safe")} <= {"_prepare_input", "_abc_impl"}
    for package in ("trl.trainer", "sentence_transformers"):
        if importlib.util.find_spec(package.partition(".")[0]) is None:
            continue
        root = Path(importlib.util.find_spec(package).origin).parent
        for file in root.rglob("*trainer*.py"):
            assert "_mps_safe" not in file.read_text(encoding="utf-8")


def test_an_attribute_of_the_other_trainer_is_its_own(trainer_of):
    """GRPO counts its steps in `_step`, its metrics in `_metrics`."""

    class Other(Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._step = self._tally = self._said = 0

        def prediction_step(self, *args, **kwargs):
            self._step += 1
            return super().prediction_step(*args, **kwargs)

    mixed = trainer_of(type("Mixed", (MPSSafeTrainer, Other), {}), always=True)
    mixed.evaluate()
    assert (mixed._step, mixed._tally, mixed._said) == (3, 0, 0)


def test_what_the_first_pass_counted_is_undone(trainer_of):
    class Counts(Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._metrics, self.seen, self.total = {"eval": {}}, 0, torch.zeros(())

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            self._metrics["eval"].setdefault("loss", []).append(float(loss))
            self.seen += 1
            self.total += 1
            return (loss, outputs) if return_outputs else loss

    trainer = trainer_of(type("Mixed", (MPSSafeTrainer, Counts), {}))
    with emulate_mps("2.8"):
        metrics = trainer.evaluate()
    assert metrics["eval_cpu_forward_batches"] == 3
    found = trainer._metrics["eval"]["loss"]
    assert len(found) == trainer.seen == int(trainer.total) == 3
    assert all(map(math.isfinite, found))


def test_undoing_leaves_what_was_there_before():
    class Holder:
        pass

    holder = Holder()
    holder.counts, holder.rows, holder.n, holder.data = ({"a": [1.0], "b": {}}, [1], 2, dict.fromkeys(range(5000), 0))
    undo = remember_counts(holder)
    holder.counts["a"].append(2.0)
    holder.counts["b"]["x"] = 1
    holder.counts["c"] = [3]
    holder.rows.append(2)
    holder.n += 1
    undo()
    assert (holder.counts, holder.rows, holder.n) == ({"a": [1.0], "b": {}}, [1], 2)


def test_every_model_of_a_trainer_goes_to_the_cpu_and_comes_back():
    class Holder:
        pass

    holder = Holder()
    holder.model, holder.others = torch.nn.Linear(2, 2), {"teacher": torch.nn.Linear(2, 2)}
    holder.loss = torch.nn.Sequential(holder.model)
    model, others, loss = holder.model, holder.others, holder.loss
    models = CpuModels()
    with models.taking_over(holder) as twin:
        assert holder.model is twin is not model
        assert holder.loss[0] is twin
        assert holder.others["teacher"] is not others["teacher"]
        first = holder.others["teacher"]
    assert (holder.model, holder.others, holder.loss) == (model, others, loss)
    with models.taking_over(holder):
        assert holder.others["teacher"] is first, "copied once"


def test_with_seq2seq_trainer(tmp_path):
    task, model = ALL_TASKS["text2text-generation"], build_model("tiny-t5")
    rows = task.rows(TEXTS, byte_tokenizer("right"), 32, config=model.config)

    def make(kind):
        arguments = Seq2SeqTrainingArguments(
            str(tmp_path), **QUIET, predict_with_generate=True, generation_max_length=6, label_smoothing_factor=0.1
        )
        fresh = build_model("tiny-t5")
        collate = task.collator(byte_tokenizer("right"), fresh)
        return kind(model=fresh, args=arguments, eval_dataset=rows, data_collator=collate)

    compare(make, Seq2SeqTrainer)


def test_with_peft(trainer_of):
    peft = pytest.importorskip("peft")

    def make(kind):
        torch.manual_seed(0)
        model = build_model("tiny-llama", max_positions=128)
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
        return trainer_of(kind, adapted, options={"label_names": ["labels"]})  # which older releases do not look for

    assert compare(make, Trainer)["eval_cpu_forward_batches"] == 3


def rolled(collator):
    """The same batches, padded on the left."""

    def collate(rows):
        batch = dict(collator(rows))
        mask = batch["attention_mask"]
        for name, value in batch.items():
            if isinstance(value, torch.Tensor) and value.shape == mask.shape and name != "attention_mask":
                moved = [torch.roll(row, int((m == 0).sum())) for row, m in zip(value, mask, strict=True)]
                batch[name] = torch.stack(moved)
        batch["attention_mask"] = mask.flip(-1)
        return batch

    return collate


PAIRS = [{"prompt": text, "chosen": f" {text[::-1]}", "rejected": " no" * (3 + i)} for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize("name", ["DPO", "Reward", "SFT"])
def test_with_trl(tmp_path, name):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    kind, settings = getattr(trl, f"{name}Trainer"), getattr(trl, f"{name}Config")
    rows = [{"text": text} for text in TEXTS] if name == "SFT" else PAIRS
    data = datasets.Dataset.from_list(rows)

    def make(chosen):
        model = build_model("tiny-llama", max_positions=128)
        if name == "Reward":
            torch.manual_seed(0)
            config = model.config
            config.num_labels = 1
            model = transformers.LlamaForSequenceClassification(config)
        arguments = settings(output_dir=str(tmp_path), **QUIET, max_length=64, bf16=False, gradient_checkpointing=False)
        more = {"ref_model": build_model("tiny-llama", seed=1, max_positions=128)} if name == "DPO" else {}
        trainer = chosen(
            model=model,
            args=arguments,
            train_dataset=data,
            eval_dataset=data,
            processing_class=byte_tokenizer("left"),
            **more,
        )
        trainer.data_collator = rolled(trainer.data_collator)
        return trainer

    assert compare(make, kind)["eval_nonfinite_batches"] == 0


def test_with_torch_compile(trainer_of):
    """Under emulation the model runs uncompiled: dynamo would trace through the Python of the kernels."""
    options = {"torch_compile": True, "torch_compile_backend": "eager"}
    found = compare(lambda kind: trainer_of(kind, "tiny-llama", options=options), Trainer)
    assert found["eval_cpu_forward_batches"] == 3


REWARDS = {"reward_funcs": lambda completions, **_: [float(len(text)) for text in completions]}
GENERATING = {
    "GRPO": ({"num_generations": 2}, lambda: REWARDS),
    "RLOO": ({"num_generations": 2, "beta": 0.0}, lambda: REWARDS),
    "Distillation": ({}, lambda: {"teacher_model": build_model("tiny-llama", seed=1, max_positions=128)}),
}


@pytest.mark.parametrize("name", GENERATING)
def test_with_trainers_that_generate(tmp_path, name):
    """Generation is broken under emulation, and needs safe_sdpa; the evaluation around it is the stock one's."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    if not hasattr(trl, f"{name}Trainer"):
        pytest.skip(f"this trl has no {name}Trainer")
    kind, settings = getattr(trl, f"{name}Trainer"), getattr(trl, f"{name}Config")
    options, models = GENERATING[name]
    data = datasets.Dataset.from_list([{"prompt": text} for text in TEXTS])

    def evaluated(chosen, **more):
        transformers.set_seed(0)
        arguments = settings(
            output_dir=str(tmp_path),
            **{**QUIET, "per_device_eval_batch_size": 4},
            **options,
            max_completion_length=4,
            bf16=False,
            gradient_checkpointing=False,
        )
        trainer = chosen(
            model=build_model("tiny-llama", max_positions=128),
            args=arguments,
            train_dataset=data,
            eval_dataset=data,
            processing_class=byte_tokenizer("left"),
            **models(),
            **more,
        )
        return measured(trainer.evaluate())

    mixed = type("Mixed", (MPSSafeTrainer, kind), {})
    stock = evaluated(kind)
    assert "eval_loss" in stock
    assert any("reward" in found for found in stock) is ("num_generations" in options)
    assert evaluated(mixed, always=True) == pytest.approx(stock, nan_ok=True)
    with emulate_mps("2.8"), install("safe_sdpa"):
        assert evaluated(mixed) == pytest.approx(stock, rel=1e-4, nan_ok=True)


def test_with_sentence_transformers(tmp_path):
    st = pytest.importorskip("sentence_transformers")
    datasets = pytest.importorskip("datasets")
    modules, losses = (
        importlib.import_module(f"sentence_transformers.sentence_transformer.{part}") for part in ("modules", "losses")
    )
    build_model("tiny-embedder", max_positions=128).save_pretrained(tmp_path)
    byte_tokenizer("left").save_pretrained(tmp_path)
    data = datasets.Dataset.from_dict({"anchor": TEXTS, "positive": [text[::-1] for text in TEXTS]})

    def make(kind):
        transformer = modules.Transformer(str(tmp_path))
        transformer.processor = byte_tokenizer("left")  # Not that of the model's type.
        pooling = modules.Pooling(64, pooling_mode="lasttoken")
        model = st.SentenceTransformer(modules=[transformer, pooling], device="cpu")
        loss = losses.MultipleNegativesRankingLoss(model)
        arguments = st.SentenceTransformerTrainingArguments(str(tmp_path / "out"), **QUIET)
        return kind(model=model, args=arguments, train_dataset=data, eval_dataset=data, loss=loss)

    assert compare(make, st.SentenceTransformerTrainer)["eval_cpu_forward_batches"] == 2
