"""On torch 2.4 the CPU itself gives NaN for fully masked rows: the probe and the fix on a real defect, not emulated.

A script, run by `nox -s real-nan`: that environment has neither transformers nor pytest. mpsdiag asks for torch 2.5;
the kernel's level of `check` and `run --fix` need torch alone, and are kept working on 2.4 for this.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

SCRIPT = """
import torch
import torch.nn.functional as F

torch.manual_seed(0)
query, key, value = torch.randn(3, 1, 2, 16, 64).unbind()
mask = torch.ones(16, 16, dtype=torch.bool).tril() & (torch.arange(16) >= 2)  # rows 0 and 1 see no key
with torch.no_grad():
    output = F.scaled_dot_product_attention(query, key, value, mask)
rows = output[0, :, :2]
print("NaN" if rows.isnan().any() else "zeros" if not rows.any() else "other", bool(output[0, :, 2:].isfinite().all()))
"""


def seen(*words: str) -> tuple[int, str]:
    """The exit code and the standard output of a command of mpsdiag."""
    done = subprocess.run([sys.executable, "-m", "mpsdiag", *words], capture_output=True, text=True, check=False)
    sys.stderr.write(done.stderr)
    return done.returncode, done.stdout


def main() -> None:
    """Exit 1 unless the probe finds the defect, the script shows it and the fix cures it."""
    real = torch.__version__.startswith("2.4.")
    code, out = seen("check", "--level", "1", "--device", "cpu", "--json")
    document = json.loads(out)
    probe = document["probes"][0]["status"]
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "script.py")
        script.write_text(SCRIPT, encoding="utf-8")
        stock = seen("run", "--fix", "sdpa", str(script))[1].strip()
        fixed = seen("run", "--fix", "safe_sdpa", str(script))[1].strip()
    found = {"exit": code, "probe": probe, "emulated": document["emulated"], "stock": stock, "safe_sdpa": fixed}
    wanted = {
        "exit": int(real),
        "probe": "fail" if real else "pass",
        "emulated": None,
        "stock": "NaN True" if real else "zeros True",
        "safe_sdpa": "zeros True",
    }
    sys.stdout.write(f"torch {torch.__version__}: {json.dumps(found)}\n")
    sys.exit(found != wanted)


if __name__ == "__main__":
    main()
