"""Kills a bench with SIGKILL at random moments, resumes it, and looks at what it left. Ends with 0 if all was well.

Usage: python kill_driver.py FOLDER KILLS SEED. One process imports everything; each bench is a fork of it, with a fork
server of its own. The moment of a kill is counted in cells that began, so that a slow machine sees the same moments.
"""

import faulthandler
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from mpsdiag.benching.journal.journal import read_journal
from mpsdiag.benching.journal.record import Header
from mpsdiag.benching.plan.expand import Plan
from mpsdiag.benching.plan.matrix import MatrixSpec
from mpsdiag.benching.plan.request import BenchRequest
from mpsdiag.benching.run.executor import LocalExecutor, Site
from mpsdiag.benching.run.launch import LIGHT, Isolation
from mpsdiag.benching.run.runner import MatrixRun
from mpsdiag.scenario.scenario import Scenario

CELLS, ROUNDS = 8, 1
LIMIT = 60.0
"""Seconds after which a bench that makes no progress hangs."""
EXPECTED = CELLS * (1 + ROUNDS)


class Silent:
    def leg(self, title, total, done):
        pass

    def ended(self, record):
        pass

    def note(self, sentence):
        pass


def isolation():
    return Isolation(preload=(*LIGHT, "fake_cells"))


def bench(folder):
    plan = Plan(tuple(Scenario(seed=seed, repeats=1) for seed in range(CELLS)))
    header = Header(mpsdiag="0", command="kill", created="now")
    request = BenchRequest(MatrixSpec(rounds=ROUNDS, max_rounds=ROUNDS), folder, function="fake_cells:quick")
    executor = LocalExecutor(isolation(), logs=folder / "logs")
    site = Site(plan, executor, {"torch": "2"}, {}, "spawn")
    return MatrixRun(request, plan, site, header, Silent()).run().exit_code


def life(folder, starts, begun, moment):
    """One bench, killed a moment after so many cells began; its exit status, None if killed."""
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(LIMIT / 2)
        os._exit(bench(folder))
    end = time.monotonic() + LIMIT
    while starts.read_bytes().count(b"\n") < begun and time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    assert time.monotonic() < end, f"a bench hung: see {folder}"
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return None if status == signal.SIGKILL else os.waitstatus_to_exitcode(status)


def finished(path):
    """Whole lines of the journal, and the rounds they hold."""
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    rounds = [f"{line['key']}-{line['round']}" for line in map(json.loads, whole.splitlines()[1:])]
    return whole, rounds


def main(folder, kills, seed):
    generator = random.Random(seed)
    number, torn = 0, 0
    while kills:
        place = folder / str(number)
        place.mkdir(exist_ok=True)
        journal, starts = place / "journal.jsonl", place / "starts.txt"
        os.environ["FAKE_CELLS_STARTED"] = str(starts)
        whole, before = finished(journal)
        starts.write_text("")
        status = life(place, starts, generator.randrange(4), generator.uniform(0, 0.06))
        kills -= status is None
        after, rounds = finished(journal)
        assert after.startswith(whole), "a finished line was changed"
        assert len(set(rounds)) == len(rounds), "a round is in the journal twice"
        again = set(starts.read_text().split()) & set(before)
        assert not again, f"finished rounds were run again: {again}"
        if journal.exists():
            assert all("is torn" in warning for warning in read_journal(journal).warnings)
        if status is not None:
            assert (status, len(rounds)) == (0, EXPECTED), (status, len(rounds))
            number += 1
        elif generator.random() < 0.4 and len(rounds) > len(before):
            # What a power cut adds to a kill: the last line is only partly on the disk.
            data = journal.read_bytes()
            journal.write_bytes(data[: -generator.randrange(2, 200)])
            assert "is torn" in "".join(read_journal(journal).warnings)
            torn += 1
    sys.stdout.write(f"{number} benches finished, {torn} torn lines\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
