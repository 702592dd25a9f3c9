import os
import signal
import threading

import pytest
import torch
from safetensors.torch import save_file

from mpsdiag.errors import BadInput
from mpsdiag.training.resuming import interrupts_deferred, last_whole, save_undisturbed, to_resume_from, what_is_missing


def checkpoint(folder, step=5):
    """What the Trainer writes, as small as it can be."""
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    save_file({"weight": torch.ones(64)}, path / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt"):
        (path / name).write_bytes(b"x")
    (path / "trainer_state.json").write_text(f'{{"global_step": {step}}}', encoding="utf-8")
    return path


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-9])


def test_a_whole_one(tmp_path):
    path = checkpoint(tmp_path)
    assert what_is_missing(path) is None
    assert last_whole(tmp_path) == path
    assert to_resume_from("latest", tmp_path) == path
    assert to_resume_from(str(path), tmp_path / "elsewhere") == path


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: (path / "trainer_state.json").unlink(), "it has no trainer_state.json"),
        (lambda path: cut_short(path / "trainer_state.json"), "its trainer_state.json is damaged"),
        (lambda path: (path / "trainer_state.json").write_text("[]"), "its trainer_state.json is damaged"),
        (lambda path: (path / "trainer_state.json").write_text("{}"), "names no step"),
        (lambda path: (path / "model.safetensors").unlink(), "it has no weights"),
        (lambda path: cut_short(path / "model.safetensors"), "model.safetensors is missing or cut short"),
        (lambda path: (path / "optimizer.pt").unlink(), "it has no optimizer.pt"),
        (lambda path: (path / "scheduler.pt").unlink(), "it has no scheduler.pt"),
        (
            lambda path: (path / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "part-1.safetensors"}}'
            ),
            "its part-1.safetensors is missing or cut short",
        ),
        (lambda path: (path / "model.safetensors.index.json").write_text("{"), "it has no weights"),
    ],
)
def test_one_that_was_torn_is_named_and_passed_over(tmp_path, damage, sentence, caplog):
    before, torn = checkpoint(tmp_path, 5), checkpoint(tmp_path, 10)
    damage(torn)
    with pytest.raises(BadInput, match=sentence):
        to_resume_from(str(torn), tmp_path)
    assert last_whole(tmp_path) == before
    assert "checkpoint-10' is skipped" in caplog.text


def test_folders_that_are_none(tmp_path):
    (tmp_path / "checkpoint-3").write_text("a file", encoding="utf-8")
    (tmp_path / "checkpoint-best").mkdir()
    assert last_whole(tmp_path) is None
    assert last_whole(tmp_path / "absent") is None
    with pytest.raises(BadInput, match="it does not exist"):
        to_resume_from(str(tmp_path / "absent"), tmp_path)
    with pytest.raises(BadInput, match="it is not a folder"):
        to_resume_from(str(tmp_path / "checkpoint-3"), tmp_path)


def test_the_highest_step_wins_not_the_last_name(tmp_path):
    checkpoint(tmp_path, 900)
    assert last_whole(tmp_path).name == "checkpoint-900"
    checkpoint(tmp_path, 1000)
    assert last_whole(tmp_path).name == "checkpoint-1000"


def test_what_is_said_when_a_run_begins_at_the_beginning(tmp_path, caplog):
    assert to_resume_from("latest", tmp_path) is None
    assert "starting from the beginning" in caplog.text
    caplog.clear()
    assert to_resume_from(None, tmp_path) is None
    assert not caplog.records
    checkpoint(tmp_path)
    assert to_resume_from(None, tmp_path) is None
    assert "--resume_from_checkpoint latest" in caplog.text


def test_an_interrupt_waits_for_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts_deferred():  # noqa: PT012 - the block is what is tested
        os.kill(os.getpid(), signal.SIGINT)
        done.append(True)
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_block_comes_out_before_the_interrupt():
    with pytest.raises(OSError, match="disk"), interrupts_deferred():  # noqa: PT012 - likewise
        os.kill(os.getpid(), signal.SIGINT)
        raise OSError("disk")


def test_other_threads_have_no_signals_to_defer():
    found = []

    def work():
        with interrupts_deferred():
            found.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found


def test_a_trainer_finishes_its_checkpoint():
    class Saves:
        def __init__(self):
            self.saved = []

        def _save_checkpoint(self, model, trial):
            os.kill(os.getpid(), signal.SIGINT)
            self.saved.append((model, trial))

    trainer = Saves()
    save_undisturbed(trainer)
    with pytest.raises(KeyboardInterrupt):
        trainer._save_checkpoint("model", trial=None)
    assert trainer.saved == [("model", None)]
    save_undisturbed(object())
