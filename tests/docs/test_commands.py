"""Every command in README and docs is run, among the files it names, up to the point where the long work begins."""

import re
import shlex
import shutil
from pathlib import Path
from unittest import mock

import pytest

from mpsdiag.cli import main

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(?:|bash|sh|text|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Where the long work begins, by command; what is not here (compare, report, env) is run to its end.
WORK = {
    "check": ["mpsdiag.checking.run.run_level", "mpsdiag.checking.run.run_probe"],
    "trace": ["mpsdiag.tracing.run._traced"],
    "bench": ["mpsdiag.benching.run.bench.Session.run", "mpsdiag.benching.cluster.fleet.connect"],
    "bisect": ["mpsdiag.bisect.installer.Installer.releases"],  # the package index is asked there
    "run": ["mpsdiag.fixes.script.become", "mpsdiag.fixes.script.supervise"],
    "train": ["mpsdiag.training.pipeline.Run.execute"],
}


class Begun(BaseException):
    """The command understood everything, and read its files."""


def commands():
    """Every line of a code block that runs mpsdiag."""
    for page in PAGES:
        for block in FENCE.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                words = line.removeprefix("$ ").strip()
                if words.startswith("mpsdiag ") and "..." not in words and "[" not in words:
                    yield re.split(r"\s#\s|\s*[|;>&]", words)[0].strip()


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with everything that the pages name."""
    import torch

    import mpsdiag
    from mpsdiag.inputs.builtin import byte_tokenizer
    from mpsdiag.inputs.models import build_model
    from mpsdiag.serialization import dumps
    from mpsdiag.tracing.cases.recorded_case import About, save_batch, write_case

    folder = tmp_path_factory.mktemp("docs")
    model, batch = build_model("tiny-llama"), {"input_ids": torch.ones(2, 8, dtype=torch.long)}
    about = About(phase="evaluation", step=0, grad=False, device="cpu", dtype="float32")
    write_case(folder / "FOLDER", model, batch, about)
    for name in ("your/model", "MODEL", "RUN/checkpoint-1"):
        shutil.copytree(folder / "FOLDER" / "model", folder / name)
        byte_tokenizer("left").save_pretrained(folder / name)
    save_batch(folder / "batch.safetensors", batch)
    for name in ("data.txt", "DATA"):
        (folder / name).write_text("A text.\nAnother, longer text.\n" * 40)
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("*.json", "*.py"))
    for name in ("matrix.toml", "my.toml"):
        (folder / name).write_text('[axes]\nmodel = "tiny-gpt2"\nseed = [0, 1, 2, 3]\n')
    for name in ("results/one", "results/two", "results", "other-mac"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / "data" / "every_end.jsonl", folder / name / "journal.jsonl")
    (folder / "reports").mkdir()
    shutil.copytree(ROOT / "reports" / "bisect-torch", folder / "reports" / "bisect-torch")
    for name in ("this-mac.json", "other-mac.json"):
        (folder / name).write_text(dumps(mpsdiag.check(level=1).to_dict()))
    for name in ("train.py", "your_script.py", "my_check.py"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_every_command_runs(line, here, monkeypatch):
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _, name, *words = (
        part for word in shlex.split(line) for part in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
    )
    patched = [mock.patch(place, side_effect=Begun) for place in WORK.get(name, [])]
    for one in patched:
        one.start()
    try:
        with pytest.raises((SystemExit, Begun)) as end:
            main([name, *words])
    finally:
        for one in patched:
            one.stop()
    finished = end.type is SystemExit and end.value.code == 0
    assert finished or (end.type is Begun and name in WORK), end.value


def test_a_command_that_does_not_exist_would_be_noticed(here, monkeypatch):
    monkeypatch.chdir(here)
    with pytest.raises(SystemExit) as end:
        main(["check", "--modle", "your/model"])
    assert end.value.code == 2
