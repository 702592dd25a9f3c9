import io
import sys

from mpsdiag.benching.journal.record import Job
from mpsdiag.benching.run.progress_bar import Progress
from mpsdiag.scenario.scenario import Scenario


class Screen(io.StringIO):
    def isatty(self):
        return True


def record(seed, status="ok", reason=None):
    job = Job(key=f"key{seed}", cell=Scenario(seed=seed), log="")
    return job.record(status=status, reason=reason, started="now", seconds=1.0)


def test_in_a_pipe_a_line_now_and_then_and_trouble_at_once(capsys):
    now = [100.0]
    with Progress(clock=lambda: now[0]) as progress:
        progress.leg("verdicts", 4, 1)
        progress.ended(record(0))
        now[0] += 20
        progress.ended(record(1, "nan"))
        progress.ended(record(2, "crash", "ended by SIGSEGV\x1b[2J"))
    assert capsys.readouterr().err.splitlines() == [
        "mpsdiag: verdicts: 4 cells, 1 of them already in the journal",
        "mpsdiag: verdicts: 3 of 4 (1 ok, 1 nan)",
        "mpsdiag: crash: sdpa + standard, left, tiny-llama, float32: ended by SIGSEGV [2J (key key2)",
    ]


def test_one_cell_is_no_plural(capsys):
    with Progress() as progress:
        progress.leg("verdicts", 1, 0)
    assert capsys.readouterr().err == "mpsdiag: verdicts: 1 cell\n"


def test_on_a_terminal_a_bar_and_no_markup_of_what_others_wrote(monkeypatch):
    stream = Screen()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with Progress() as progress:
        progress.busy("laying out the cells")
        progress.leg("verdicts", 2, 0)
        progress.ended(record(0, "error", "[red]ValueError[/red]"))
        progress.leg("timing round 1", 2, 0)
        progress.ended(record(1))
    assert "[red]ValueError[/red]" in stream.getvalue().replace("\n", "")
    assert "laying out the cells" in stream.getvalue()
    assert "timing round 1 (1 ok), 2 of 2" in stream.getvalue()
