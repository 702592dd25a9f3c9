"""What the package gives at once, and what it loads on first use."""

import subprocess
import sys


def test_naming_an_emulation_loads_no_torch_and_what_computes_is_there():
    code = """
import sys
from mpsdiag.emulation.releases import DEFECTS, RELEASES
from mpsdiag.emulation.selection import Emulation
Emulation("2.8", macos=15)
print("torch" in sys.modules)
from mpsdiag.emulation.mode import emulate_mps
print(emulate_mps.__module__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "mpsdiag.emulation.mode"]
