import subprocess
import sys
from pathlib import Path


def test_fifty_kills_lose_nothing_and_run_nothing_twice(tmp_path):
    driver = Path(__file__).parents[1] / "kill_driver.py"
    done = subprocess.run(
        [sys.executable, driver, tmp_path, "50", "7"], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    finished, torn = (int(word) for word in done.stdout.split() if word.isdigit())
    assert finished >= 1
    assert torn >= 1
