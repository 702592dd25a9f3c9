import subprocess
import types

import pytest
import torch

from mpsdiag import device
from mpsdiag.errors import BadInput, CannotDecide


@pytest.fixture
def fake_mps(monkeypatch):
    """A torch.mps that counts its calls, and a backend that says it is there."""
    calls = []
    module = types.SimpleNamespace(
        synchronize=lambda: calls.append("synchronize"), driver_allocated_memory=lambda: 4096, is_available=lambda: True
    )
    monkeypatch.setattr(torch, "mps", module)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    return calls


def test_auto_takes_mps_first(fake_mps):
    assert device.resolve("auto") == "mps"


def test_auto_ends_at_the_cpu(monkeypatch):
    monkeypatch.setattr(device, "available", lambda kind: kind == "cpu")
    assert device.resolve("auto") == "cpu"


@pytest.mark.parametrize("name", ["cpu", "mps", "cuda", "cuda:1", "xpu"])
def test_device_names_pass_through(name):
    assert device.resolve(name) == name


@pytest.mark.parametrize("name", ["cdua", "cuda:N", "cuda:-1", "cpu:3", "", "gpu"])
def test_nonsense_is_refused_with_the_names_there_are(name):
    with pytest.raises(BadInput, match=r"cuda:N|needs a number"):
        device.resolve(name)


def test_the_cpu_is_usable():
    assert device.usable("cpu") == device.Usability(ok=True)


def test_a_device_that_is_not_there_says_why():
    if torch.backends.mps.is_built():
        pytest.skip("this torch has MPS built in")
    state = device.usable("mps")
    assert not state.ok
    assert "built without MPS" in state.reason
    with pytest.raises(CannotDecide, match="Device 'mps' cannot be used here: torch"):
        device.require_usable("mps")


def test_an_mps_that_refuses_work_is_not_usable(fake_mps, monkeypatch):
    refusal = "RuntimeError: MPS backend out of memory (MPS allocated: 0 bytes)"
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", f"Traceback\n{refusal}\n")
    )
    state = device.usable("mps")
    assert not state.ok
    assert "virtual machine" in state.reason
    assert refusal in state.reason


def test_an_mps_that_works_in_the_child_is_usable(fake_mps, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, "usable\n", ""))
    assert device.usable("mps").ok


def test_an_mps_that_hangs_is_not_usable(fake_mps, monkeypatch):
    def hang(command, **_):
        raise subprocess.TimeoutExpired(command, device.CHILD_SECONDS)

    monkeypatch.setattr(subprocess, "run", hang)
    assert "did not answer" in device.usable("mps").reason


def test_the_child_program_is_one_that_can_fail():
    """The same program with the CPU in the place of mps ends well; with a broken sum it does not."""
    good = device._CHILD.replace("'mps'", "'cpu'").replace("torch.mps.synchronize(); ", "")
    exec(compile(good, "child", "exec"), {})  # noqa: S102 - our own constant
    with pytest.raises(AssertionError):
        exec(compile(good.replace("x + 1", "x + 2"), "child", "exec"), {})  # noqa: S102


def test_mps_synchronizes_and_tells_its_memory(fake_mps):
    device.synchronize("mps")
    assert fake_mps == ["synchronize"]
    assert device.current_memory("mps") == 4096
    assert device.peak_memory("mps") == 4096
    device.reset_peak_memory("mps")


def test_the_cpu_has_no_device_memory():
    device.synchronize("cpu")
    assert device.current_memory("cpu") is None
    assert device.peak_memory(torch.device("cpu")) is None
    assert device.process_peak_memory() > 2**20


def test_what_torch_shows_goes_into_the_environment(fake_mps):
    found = device.accelerators(probe=False)
    assert found["mps_built"] is True
    assert found["mps_available"] is True
    assert found["mps_usable"] is None


def test_seeding_repeats_random_numbers():
    device.seed_everything(7)
    first = torch.rand(3)
    device.seed_everything(7)
    assert torch.equal(first, torch.rand(3))


def test_dtypes_are_tried_not_assumed(monkeypatch):
    assert device.supports_dtype("cpu", "bfloat16") is None
    with pytest.raises(BadInput, match="Unknown dtype 'floaty16'"):
        device.supports_dtype("cpu", "floaty16")

    def refuse(*_, **__):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    monkeypatch.setattr(torch, "ones", refuse)
    assert device.supports_dtype("mps", "float64") == (
        "mps does not compute in float64: Cannot convert a MPS Tensor to float64 dtype"
    )
