from dataclasses import fields

import pytest
from transformers import TrainingArguments

from mpsdiag.errors import BadInput
from mpsdiag.fixes.modes import MODES
from mpsdiag.training.command_line import choose_attention, make_parser, parse, require_available, with_latest


def test_the_command_of_the_mission(tmp_path):
    found = parse(
        "--model gpt2 --dataset wikitext --dataset_config wikitext-2-raw-v1 --mode pretrain "
        f"--learning_rate 1e-4 --max_length 128 --use_packing --output_dir {tmp_path} --device cpu".split()
    )
    assert (found.model.model, found.data.dataset, found.data.dataset_config) == (
        "gpt2",
        "wikitext",
        "wikitext-2-raw-v1",
    )
    assert found.data.use_packing
    assert found.training.learning_rate == 1e-4
    assert found.training.device.type == found.device == "cpu"
    assert found.training.output_dir == str(tmp_path)


def test_defaults_hide_no_nan_and_report_to_nobody():
    training = parse(["--device", "cpu"]).training
    assert training.logging_nan_inf_filter is False
    assert training.report_to == []
    assert training.output_dir == "runs/train"
    assert parse(["--device", "cpu", "--logging_nan_inf_filter", "true"]).training.logging_nan_inf_filter is True


def test_help_lists_our_options_and_all_of_the_training_arguments():
    shown = make_parser().format_help()
    ours = (
        "mode",
        "attn_implementation",
        "padding_side",
        "use_packing",
        "eval_max_batches",
        "disable_mps_fix",
        "emulate",
    )
    names = [field.name for field in fields(TrainingArguments) if field.init]
    missing = [name for name in (*ours, *names) if f"--{name} " not in shown and f"--{name}," not in shown]
    assert missing == []


def test_emulation_runs_on_the_cpu():
    found = parse(["--emulate", "2.8", "--emulate_macos", "14"])
    assert (found.device, found.training.device.type) == ("cpu", "cpu")
    assert found.emulation.describe() == "emulated MPS of torch 2.8 on macOS 14"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--resume_from_checkpoint"], "latest"),
        (["--resume_from_checkpoint", "--seed", "1"], "latest"),
        (["--resume_from_checkpoint", "latest"], "latest"),
        (["--resume-from-checkpoint", "a/b"], "a/b"),
        (["--resume_from_checkpoint=a/b"], "a/b"),
        ([], None),
    ],
)
def test_resuming_from_the_latest_or_a_path(given, expected):
    assert parse(["--device", "cpu", *given]).resume == expected
    assert len(with_latest(given)) <= len(given) + 1


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--mode pretain", "Did you mean 'pretrain'"),
        ("--attn_implementation safe", "Did you mean 'safe_sdpa'"),
        ("--padding_side both", "Unknown padding side 'both'"),
        ("--dtype float", "Unknown dtype 'float'"),
        ("--datset x", "Unknown argument '--datset'. Did you mean '--dataset'"),
        ("stray", "Unknown argument 'stray'"),
        ("--nosuch", "Unknown argument '--nosuch'. See mpsdiag train --help."),
        ("--lerning-rate=1", "Did you mean '--learning_rate'"),
        ("--epochs 2", "Did you mean '--num_train_epochs'"),
        ("--learning_rate fast", "invalid float value: 'fast'"),
        ("--eval_strategy never", "invalid choice: 'never'"),
        ("--max_length 1", "--max_length is 1; give a number from 2 to 1000000"),
        ("--eval_max_batches 0", "--eval_max_batches is 0"),
        ("--per_device_eval_batch_size 0", "--per_device_eval_batch_size is 0; give a number from 1 to 1000000"),
        ("--per_device_train_batch_size 0", "--per_device_train_batch_size is 0"),
        ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps is 0"),
        ("--learning_rate nan", "--learning_rate is nan; give a number from 0 to 1000000"),
        ("--learning_rate inf", "--learning_rate is inf"),
        ("--learning_rate -1", "--learning_rate is -1.0"),
        ("--num_train_epochs nan", "--num_train_epochs is nan"),
        ("--adam_beta1 1", "--adam_beta1 is 1.0; give a number from 0 to less than 1"),
        ("--seed 4294967296", "--seed is 4294967296; give a number from 0 to 4294967295"),
        ("--seed -1", "--seed is -1"),
        ("--output_dir=", "--output_dir is empty"),
        ("--validation_fraction 1.5", "--validation_fraction is 1.5"),
        ("--emulate 1.9", "Unknown torch release '1.9'"),
        ("--emulate 2.8 --emulate_macos 16", "There is no macOS 16"),
        ("--emulate 2.8 --device cuda", "--emulate runs on the CPU"),
        ("--device tpu", "Unknown device 'tpu'"),
        ("--mode evaluate --resume_from_checkpoint latest", "give it as --model"),
        ("--load_best_model_at_end true", "cannot be combined"),
    ],
)
def test_bad_input_is_one_sentence(line, sentence):
    with pytest.raises(BadInput) as caught:
        parse(line.split())
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_device_that_does_not_work_is_refused_with_the_reason(monkeypatch):
    from mpsdiag import device

    monkeypatch.setattr(device, "usable", lambda _: device.Usability(ok=False, reason="it is a virtual machine"))
    with pytest.raises(BadInput, match="Device 'mps' cannot be used here: it is a virtual machine"):
        parse(["--device", "mps"])


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("--attention eager", "attn_implementation", "eager"),
        ("--padding=right", "padding_side", "right"),
        ("--length 64", "max_length", 64),
        ("--eval-batches 3", "eval_max_batches", 3),
        ("--steps 5", "max_steps", 5),
        ("--evaluation_strategy steps", "eval_strategy", "steps"),
    ],
)
def test_an_old_word_for_an_option_works_with_one_note(line, name, value, caplog):
    found = parse(["--device", "cpu", *line.split()])
    values = {**vars(found.model), **vars(found.data), "max_steps": found.training.max_steps}
    assert values.get(name, str(getattr(found.training, name, "")).rpartition(".")[2].lower()) == value
    assert caplog.text.count(f"is read as --{name}; use that name") == 1
    assert f"--{line.partition(' ')[0].partition('=')[0].lstrip('-')} " not in make_parser().format_help()


# Which attention that makes.


@pytest.mark.parametrize(
    ("asked", "on_mps", "disabled", "chosen"),
    [
        ("auto", False, False, "sdpa"),
        ("sdpa", False, False, "sdpa"),
        ("auto", True, False, "eager"),
        ("sdpa", True, False, "eager"),
        ("auto", True, True, "sdpa"),
        ("sdpa", True, True, "sdpa"),
        ("safe_sdpa", True, False, "safe_sdpa"),
        ("eager", True, True, "eager"),
        ("min_mask_sdpa", True, False, "min_mask_sdpa"),
    ],
)
def test_attention_switches_to_eager_only_on_mps_with_the_fix(asked, on_mps, disabled, chosen):
    assert choose_attention(asked, on_mps=on_mps, fix_disabled=disabled) == chosen


def test_a_mode_that_cannot_run_here_is_refused_with_the_reason():
    assert MODES["flash_attention_2"].unavailable("cpu", "float32") is not None
    with pytest.raises(BadInput, match="Attention 'flash_attention_2' cannot run here"):
        require_available("flash_attention_2", "cpu", "float32", training=True)
    require_available("safe_sdpa", "cpu", "float32", training=True)
