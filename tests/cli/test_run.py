"""`mpsdiag run` with real scripts in real processes. Those without torch are fast; each with torch takes seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mpsdiag.fixes.startup import FOLDER, RunRequest

MPSDIAG = [sys.executable, "-c", "from mpsdiag.cli import main; main()"]

# Attention with a row that has no key, as any library may call it: NaN under the emulation of torch 2.8.
ATTENTION = """
import torch
import torch.nn.functional as F

def finite():
    torch.set_num_threads(1)
    query = torch.ones(1, 2, 4, 8)
    mask = torch.ones(4, 4, dtype=torch.bool).tril(-1)
    with torch.no_grad():
        return bool(F.scaled_dot_product_attention(query, query, query, mask).isfinite().all())
"""

PROCESSES = (
    ATTENTION
    + """
import json, subprocess, sys

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return finite()

def loaded(**options):
    return bool(next(iter(torch.utils.data.DataLoader(Data(), num_workers=1, **options))))

if __name__ == "__main__":
    if sys.argv[1:] == ["child"]:
        print(finite())
    else:
        child = subprocess.run([sys.executable, __file__, "child"], capture_output=True, text=True)
        print(json.dumps({
            "itself": finite(),
            "forked": loaded(multiprocessing_context="fork"),
            "spawned": loaded(multiprocessing_context="spawn"),
            "child": child.stdout.strip() == "True",
        }))
"""
)

TRANSFORMERS = """
import json
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

config = GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2)
model = GPT2LMHeadModel(config).eval()
mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
with torch.no_grad():
    logits = model(input_ids=torch.full((2, 6), 5), attention_mask=mask).logits
print(json.dumps({
    "finite": bool(logits.isfinite().all()),
    "attention": model.config._attn_implementation,
    "entry": hasattr(ALL_ATTENTION_FUNCTIONS["sdpa"], "__wrapped__"),
}))
"""


def run(*words, environ=None, cwd=None):
    """Run the command; what Python says about coverage or hash seeds of this process stays out of it."""
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"} | (environ or {})
    command = [*MPSDIAG, "run", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, check=False, timeout=120)


@pytest.fixture
def script(tmp_path):
    def written(text: str, name: str = "script.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return written


@pytest.mark.parametrize(("fix", "finite"), [("safe_sdpa", True), ("sdpa", False)])
def test_the_fix_and_the_emulation_reach_every_process(fix, finite, script):
    result = run("--fix", fix, "--emulate", "2.8", script(PROCESSES))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == dict.fromkeys(("itself", "forked", "spawned", "child"), finite)
    assert result.stderr.startswith("mpsdiag: ")
    assert "emulated MPS of torch 2.8 on macOS 15" in result.stderr


def test_transformers_is_reached_when_the_script_imports_it(script):
    result = run("--emulate", "2.8", script(TRANSFORMERS))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"finite": True, "attention": "sdpa", "entry": True}


def test_accelerate_launch(script):
    path = script(ATTENTION + "\nprint(finite())\n")
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
    result = run("--emulate", "2.8", *launch, "--mixed_precision", "no", "--dynamo_backend", "no", path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "True"


def test_the_script_is_main_as_python_makes_it(script, tmp_path):
    text = """
        import json, sys
        print(json.dumps([__name__, __file__, sys.argv, sys.path[0], sorted({'torch', 'mpsdiag'} & set(sys.modules)),
                          [entry for entry in sys.path if 'on_startup' in entry]]))
    """
    path = script("\n".join(line[8:] for line in text.splitlines()))
    words = ["--fix", "x", "--", "-m", "--help", ""]
    result = run("--fix", "eager", path, *words)
    assert json.loads(result.stdout) == ["__main__", str(path), [str(path), *words], str(tmp_path), [], []]
    plain = subprocess.run([sys.executable, path, *words], capture_output=True, text=True, check=True)
    assert result.stdout == plain.stdout

    module = run("-m", "script", "--fix", "x", cwd=tmp_path)
    assert json.loads(module.stdout)[2:4] == [[str(path), "--fix", "x"], str(tmp_path)]


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("raise SystemExit(7)", 7, ""),
        ("raise SystemExit('bye')", 1, "bye\n"),
        ("raise SystemExit", 0, ""),
        ("import os; os._exit(3)", 3, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
    ],
)
def test_the_end_is_the_scripts_own(end, code, said, script):
    result = run(script(f"print('out', flush=True)\n{end}\n"))
    assert result.returncode == code
    assert result.stdout == "out\n"
    assert result.stderr.split("\n", 1)[1] == said


def test_a_traceback_is_the_scripts_own(script):
    path = script("def deep():\n    return 1 / 0\n\ndeep()\n")
    result = run(path)
    plain = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    assert result.returncode == plain.returncode == 1
    assert result.stderr.split("\n", 1)[1] == plain.stderr
    assert "ZeroDivisionError" in plain.stderr


def test_a_sitecustomize_that_was_there_runs_too(script, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("import sys\nsys.was_here = __name__, __file__\n")
    path = script("import sys, sitecustomize\nprint(sys.was_here, sitecustomize.__file__)\n")
    result = run(path, environ={"PYTHONPATH": str(other)})
    theirs = str(other / "sitecustomize.py")
    assert result.stdout == f"{('sitecustomize', theirs)} {theirs}\n"


def test_a_python_without_mpsdiag_says_so_once_torch_is_imported(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['mpsdiag'] = None\n")
    (tmp_path / "torch.py").write_text("print('torch is here')\n")
    environment = RunRequest(("safe_sdpa",)).environment({"PYTHONPATH": str(tmp_path)})
    silent = subprocess.run([sys.executable, "-c", ""], capture_output=True, text=True, env=environment, check=True)
    assert (silent.stdout, silent.stderr) == ("", "")
    loud = subprocess.run(
        [sys.executable, "-c", "import torch"], capture_output=True, text=True, env=environment, check=True
    )
    assert loud.stdout == "torch is here\n"
    assert loud.stderr.count("\n") == 1
    assert f"not installed in {sys.executable}" in loud.stderr


def test_the_start_costs_little(script):
    """The hook imports neither mpsdiag nor anything outside the standard library."""
    code = "import sys; print(sorted(name.split('.')[0] for name in sys.modules))"
    environment = RunRequest(("safe_sdpa",)).environment(os.environ)
    listing = [
        set(json.loads(out.replace("'", '"')))
        for out in (
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True).stdout
            for env in (os.environ, environment)
        )
    ]
    assert listing[1] - listing[0] <= set(sys.stdlib_module_names) | {"_mpsdiag_imports", "sitecustomize"}
    assert FOLDER.joinpath("sitecustomize.py").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.py"], "There is no script nowhere.py"),
        (["scripts/nowhere.py"], "There is no script scripts/nowhere.py. Check the path"),
        (["no_such_module"], "For a module: mpsdiag run -m no_such_module"),
        (["--fix", "bogus", __file__], "Choose from: sdpa, eager, safe_sdpa, unmask_sdpa, min_mask_sdpa, positions.\n"),
        (["-m", "no_such_module_at_all"], "No module named no_such_module_at_all"),
        (["--fix", "safe_spda", __file__], "Did you mean 'safe_sdpa'?"),
        (["--fix", "flex_attention", __file__], "cannot be installed for a script"),
        (["--emulate", "1.9", __file__], "Unknown torch release '1.9'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(words, said):
    result = run(*words)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("mpsdiag: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr


def test_a_macos_without_an_emulation_is_said_to_do_nothing(script):
    result = run("--emulate-macos", "14", script("print(1)"))
    assert result.stdout == "1\n"
    assert result.stderr.startswith("mpsdiag: note: --emulate-macos has no effect without --emulate.\n")
