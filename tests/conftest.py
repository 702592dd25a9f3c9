"""What every test stands on: no network, one thread, markers of missing devices, and Trainers that print nothing."""

import os
import shutil
import signal
import sys
import tempfile
from importlib import metadata
from multiprocessing.util import Finalize
from pathlib import Path

import pytest

from mpsdiag.environment import version_numbers

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What is left of killed processes (sockets of fork servers, scratch of dask) goes with a folder of this run's own.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
SCRATCH = tempfile.mkdtemp(prefix="t")
os.environ["TMPDIR"] = tempfile.tempdir = SCRATCH
# A shell that starts this in the background has it ignore Ctrl-C, and every child of it too.
signal.signal(signal.SIGINT, signal.default_int_handler)

STARTED_WITH = frozenset(os.environ)

WIKITEXT = Path(__file__).resolve().parents[2] / "shared" / "data" / "wikitext-2"


# After multiprocessing has removed its own folder in it (priority -100).
Finalize(None, shutil.rmtree, (SCRATCH,), {"ignore_errors": True}, exitpriority=-200)


def pytest_collection_modifyitems(items):
    for item in items:
        for marker in item.iter_markers("needs"):
            for package, release in marker.kwargs.items():
                if version_numbers(metadata.version(package)) < version_numbers(release):
                    item.add_marker(pytest.mark.skip(reason=f"needs {package} {release} or newer"))
    wanted = {marker for item in items for marker in ("mps", "cuda") if item.get_closest_marker(marker)}
    if not wanted:
        return
    from mpsdiag.device import available

    for marker in wanted:
        if available(marker):
            continue
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"no {marker} device here"))


@pytest.fixture(scope="session")
def wikitext():
    if not WIKITEXT.is_dir():
        pytest.skip("the WikiText-2 text is not beside this checkout")
    return WIKITEXT


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The machine is shared, and sums split over threads have another last bit."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def nothing_left_over():
    """Older transformers pass bf16 and torch_compile on to every later Trainer of the process, through accelerate."""
    _forget_accelerate()  # what a fixture of a wider scope has left
    yield
    _forget_accelerate()


def _forget_accelerate():
    for name in [name for name in os.environ if name.startswith("ACCELERATE_") and name not in STARTED_WITH]:
        del os.environ[name]
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state()


@pytest.fixture(scope="session")
def arguments(tmp_path_factory):
    """Make quiet TrainingArguments on the CPU."""
    from transformers import TrainingArguments

    folder = tmp_path_factory.mktemp("trainer")

    def make(**options):
        defaults = {
            "output_dir": str(folder),
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "per_device_eval_batch_size": 4,
            "per_device_train_batch_size": 4,
            "save_strategy": "no",
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
        }
        return TrainingArguments(**{**defaults, **options})

    return make


@pytest.fixture(scope="session")
def choose():
    """What a user does to choose the attention of a model: `choose(model, "eager")`; up to 4.53 there is no method."""

    def choose(model, name):
        if hasattr(model, "set_attn_implementation"):
            model.set_attn_implementation(name)
        else:
            model.config._attn_implementation = name

    return choose


@pytest.fixture(scope="session")
def cache_name():
    """What models and their outputs call the cache of keys and values: another name warns from 5.24 on."""
    return "cache" if version_numbers(metadata.version("transformers")) >= (5, 24) else "past_key_values"


@pytest.fixture(scope="session")
def tokenizer():
    from mpsdiag.inputs.builtin import byte_tokenizer

    return byte_tokenizer("left")


@pytest.fixture(scope="session")
def examples(tokenizer):
    """Twelve texts of about 40 to 64 tokens, of unequal length: every batch is padded."""
    from mpsdiag.inputs.texts import encode, load_texts

    return encode(load_texts("synthetic", limit=12), tokenizer, 64)


@pytest.fixture(scope="session")
def collator(tokenizer):
    from transformers import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(tokenizer, mlm=False)


@pytest.fixture
def trainer_of(arguments, examples, collator):
    """Make a Trainer of a class on tiny-llama and the padded examples."""
    from mpsdiag.inputs.models import build_model

    def make(kind, model="tiny-llama", *, options=None, **kwargs):
        defaults = {
            "model": build_model(model, max_positions=128) if isinstance(model, str) else model,
            "args": arguments(**(options or {})),
            "eval_dataset": examples,
            "train_dataset": examples,
            "data_collator": collator,
        }
        return kind(**{**defaults, **kwargs})

    return make
