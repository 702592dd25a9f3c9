import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from mpsdiag.benching.journal.record import Job
from mpsdiag.benching.run import launch as isolation_module
from mpsdiag.benching.run.interrupt import Remembered, Stop, interruptible
from mpsdiag.benching.run.launch import LIGHT, Isolation, log_tail, memory_kills, start_method
from mpsdiag.scenario.scenario import Scenario


@pytest.fixture
def job(tmp_path):
    def make(function, **fields):
        name = function if ":" in function else f"fake_cells:{function}"
        fields = {"time_limit": 30.0, **fields}
        return Job(key="k", cell=Scenario(), function=name, log=str(tmp_path / "logs" / "cell.log"), **fields)

    return make


def test_an_answer_comes_back_with_its_numbers(light, job):
    ended = light.run(job("quick"))
    assert (ended.status, ended.signal, ended.measured.eval_losses[0]) == ("ok", None, 1.0)
    assert ended.measured.eval_losses[1] != ended.measured.eval_losses[1]
    assert 0 < ended.seconds < 30
    assert light.run(job("quick", round=1)).timing.eval_step == [0.1] * 5


@pytest.mark.parametrize("function", ["leaves_a_folder", "leaves_a_folder_and_dies"])
def test_nothing_of_a_cell_is_left_in_the_temporary_folder(light, job, function, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = light.run(job(function))
    assert (ended.reason or "").startswith("mpsdiag-cell-") or ended.signal == "SIGKILL", ended
    assert list(tmp_path.glob("mpsdiag-*")) == []


@pytest.mark.parametrize(
    ("function", "status", "name", "reason"),
    [
        ("abort", "crash", "SIGABRT", "ended by SIGABRT"),
        ("segfault", "crash", "SIGSEGV", "ended by SIGSEGV"),
        ("killed", "crash", "SIGKILL", "ended by SIGKILL"),
        ("silent", "crash", None, "without an answer (exit code 0)"),
        ("memory", "oom", None, "MemoryError"),
        ("out_of_memory_words", "oom", None, "MPS backend out of memory"),
        ("raises", "error", None, "ValueError: first line"),
        ("leaves", "error", None, "SystemExit: 5"),
        ("answers_nonsense", "error", None, "returned dict, not a CellAnswer"),
        ("no_such_function", "error", None, "AttributeError"),
        ("no_such_module:cell", "error", None, "ModuleNotFoundError"),
    ],
)
def test_every_end_has_its_status(light, job, function, status, name, reason):
    ended = light.run(job(function))
    assert (ended.status, ended.signal) == (status, name)
    assert reason in ended.reason


def test_the_log_says_where_it_crashed(light, job):
    assert "fake_cells.py" in light.run(job("abort")).log_tail
    assert "ValueError: first line\nsecond line" in light.run(job("raises")).log_tail


def test_the_list_of_extension_modules_does_not_push_out_the_place_of_a_crash(tmp_path):
    log = tmp_path / "cell.log"
    log.write_text("File here.py\n\nExtension modules: " + "torch._C, " * 1000 + "(total: 1000)\n")
    assert log_tail(log) == "File here.py\n\n"
    log.write_text("x" * 100_000)
    assert log_tail(log, 10) == "x" * 10


def test_the_kernels_memory_killer_is_told_from_a_kill(job):
    strikes = iter([7, 8])
    ended = Isolation(preload=LIGHT, kills=lambda: next(strikes)).run(job("killed"))
    assert (ended.status, ended.signal) == ("oom", "SIGKILL")
    assert "out of memory" in ended.reason
    if sys.platform == "linux":
        assert memory_kills() >= 0


def test_a_hang_is_ended_with_all_it_started_and_its_place_is_in_the_log(light, job):
    ended = light.run(job("hang", time_limit=1.5))
    assert ended.status == "timeout"
    assert "in hang" in ended.log_tail
    grandchild = int(ended.log_tail.split()[0])
    _until(lambda: not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == "zombie")


def test_an_answer_after_the_time_limit_is_a_timeout_however_short_the_limit(light, job):
    late = job("slow", time_limit=0.05).model_copy(update={"cell": Scenario(seed=1)})
    ended = light.run(late)
    assert (ended.status, ended.measured) == ("timeout", None)
    assert "time limit" in ended.reason


def test_a_megabyte_of_output_stays_out_of_the_way(light, job, capfd):
    ended = light.run(job("megabyte"))
    assert ended.status == "ok"
    assert ended.log_tail.endswith("the end of the log\n")
    assert len(ended.log_tail) <= isolation_module.TAIL_BYTES
    assert capfd.readouterr() == ("", "")
    assert Path(job("megabyte").log).stat().st_size > 2**20


def test_log_tail_of_nothing_is_empty(tmp_path):
    assert log_tail(tmp_path / "none.log") == ""


def test_stopping_gives_the_cell_its_moment_and_then_ends_it(light, job):
    stop = Stop(grace=0.5)
    threading.Timer(0.5, stop.ask).start()
    begun = time.monotonic()
    ended = light.run(job("sleeps"), stop)
    assert ended.status == "interrupted"
    assert time.monotonic() - begun < 10

    stop = Stop(grace=20.0)
    stop.ask()
    assert light.run(job("quick"), stop).status == "ok"  # it finished within its moment


def test_a_cell_that_ends_while_the_user_stops_is_interrupted_not_crashed(light, job):
    stop = Stop(grace=20.0)
    stop.ask()
    assert light.run(job("silent"), stop).status == "interrupted"


def test_launches_from_many_threads_leave_the_process_as_it_was(light, job, tmp_path):
    main = sys.modules["__main__"]
    jobs = [job("quick").model_copy(update={"key": f"k{n}", "log": str(tmp_path / f"{n}.log")}) for n in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert {ended.status for ended in threads.map(light.run, jobs)} == {"ok"}
    assert sys.modules["__main__"] is main
    assert not multiprocessing.current_process().daemon


def test_asking_twice_ends_the_moment():
    now = [0.0]
    told = []
    stop = Stop(grace=5.0, notify=lambda: told.append(1), clock=lambda: now[0])
    assert not stop.asked
    stop.ask()
    now[0] = 4.9
    assert (stop.asked, stop.due) == (True, False)
    stop.ask()
    assert (stop.due, told) == (True, [1])


def test_ctrl_c_asks_and_the_old_handler_comes_back():
    stop = Stop()
    before = signal.getsignal(signal.SIGINT)
    with interruptible(stop):
        signal.raise_signal(signal.SIGINT)
    assert stop.asked
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_ends_at_once_and_the_old_handler_comes_back():
    told = []
    stop = Stop(grace=1000.0, notify=lambda: told.append(1))
    before = signal.getsignal(signal.SIGTERM)
    with interruptible(stop):
        signal.raise_signal(signal.SIGTERM)
    assert (stop.asked, stop.due, told) == (True, True, [])
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_ctrl_c_that_an_import_swallowed_is_not_lost():
    before = signal.getsignal(signal.SIGINT)
    with Remembered():
        first, second = Stop(), Stop()
        with interruptible(first):
            pass
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with interruptible(second):
            pass
    assert (first.asked, second.asked) == (False, True)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_ctrl_c_that_meets_a_finalizer_is_remembered_without_a_word(capsys):
    class Finalized:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    stop = Stop()
    with Remembered() as interrupts:
        Finalized()
        with interruptible(stop):
            pass
    assert interrupts.pressed
    assert stop.asked
    assert capsys.readouterr().err == ""


def test_other_exceptions_that_are_lost_are_said_as_ever(monkeypatch):
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)

    class Finalized:
        def __del__(self):
            raise ValueError

    with Remembered():
        Finalized()
    assert [one.exc_type for one in lost] == [ValueError]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_nearly_done_is_spared_once(number):
    before = signal.getsignal(number)
    with Remembered() as interrupts:
        interrupts.spare = True
        signal.raise_signal(number)
        assert interrupts.pressed
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_handlers_of_others_stay_in_place():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with Remembered():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_a_launch_that_fails_because_the_user_stops_is_no_error(light, job, monkeypatch):
    stop = Stop()

    def ended_with_the_group(self, job):
        stop.end()
        raise EOFError

    monkeypatch.setattr(Isolation, "_launch", ended_with_the_group)
    assert light.run(job("quick"), stop).status == "interrupted"


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_ctrl_c_harms_no_process_that_is_being_started(tmp_path, start):
    """Every Python that is started sends one to the whole group, as a terminal does, while it boots."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\nif 'CTRL_C' in os.environ:\n    os.killpg(0, signal.SIGINT)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, signal
        from mpsdiag.benching.run.launch import LIGHT, Isolation
        from mpsdiag.benching.journal.record import Job
        from mpsdiag.scenario.scenario import Scenario
        heard = []
        signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
        os.environ["CTRL_C"] = "at boot"
        job = Job(key="k", cell=Scenario(), function="mpsdiag.benching.run.in_child:nothing",
                  log={str(tmp_path / "l")!r})
        print(Isolation({start!r}, LIGHT).run(job).status, bool(heard))
        """)
    )
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        start_new_session=True,
    )
    assert (done.stdout.split(), done.stderr) == (["ok", "True"], "")


@pytest.mark.parametrize(
    ("platform", "devices", "method"),
    [
        ("linux", ["cpu"], "forkserver"),
        ("linux", [], "forkserver"),
        ("linux", ["cpu", "cuda:0"], "spawn"),
        ("linux", ["xpu"], "spawn"),
        ("darwin", ["cpu"], "spawn"),
        ("darwin", ["mps"], "spawn"),
    ],
)
def test_start_method(monkeypatch, platform, devices, method):
    monkeypatch.setattr(sys, "platform", platform)
    assert start_method(devices) == method


def test_a_fresh_interpreter_works_too(job):
    assert Isolation("spawn").run(job("quick")).status == "ok"


def test_a_script_without_a_main_guard_is_not_run_again(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        from mpsdiag.benching.run.launch import LIGHT, Isolation
        from mpsdiag.benching.journal.record import Job
        from mpsdiag.scenario.scenario import Scenario
        print("run")
        job = Job(key="k", cell=Scenario(), function="mpsdiag.benching.run.in_child:nothing",
                  log={str(tmp_path / "l")!r})
        for start in ("forkserver", "spawn"):
            print(Isolation(start, LIGHT).run(job).status)
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["run", "ok", "ok"]


def test_the_cell_ends_when_its_bench_is_killed(tmp_path):
    script = tmp_path / "bench.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from mpsdiag.benching.run.launch import LIGHT, Isolation
        from mpsdiag.benching.journal.record import Job
        from mpsdiag.scenario.scenario import Scenario
        log = {str(tmp_path / "log")!r}
        Isolation(preload=LIGHT).run(Job(key="k", cell=Scenario(), function="fake_cells:tells_and_sleeps", log=log))
        """)
    )
    bench = subprocess.Popen([sys.executable, script])
    log = tmp_path / "log"
    _until(lambda: log.exists() and log.read_text().strip())
    cell = psutil.Process(int(log.read_text()))
    bench.kill()
    bench.wait()
    _until(lambda: not cell.is_running() or cell.status() == psutil.STATUS_ZOMBIE)


def _until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
