"""`mpsdiag.watch` for a block of code; what `mpsdiag run --trace` and `--check` do in each process of a script."""

import atexit
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing import util
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel
from torch import Tensor, nn

from mpsdiag.emulation import mode as emulation
from mpsdiag.errors import BadInput, MpsdiagError, first_line
from mpsdiag.findings import Emulated
from mpsdiag.fixes.process import install
from mpsdiag.inputs.modules import in_mode
from mpsdiag.invariance.measure import padding_invariance
from mpsdiag.quiet import no_bars
from mpsdiag.scenario.exposure import predict
from mpsdiag.serialization import dumps, write_atomically
from mpsdiag.tracing.cases.recorded_case import About, write_case
from mpsdiag.tracing.process.forwards import WatchedForward
from mpsdiag.tracing.process.watched import ScriptCheck, ScriptFinding, ScriptReport
from mpsdiag.tracing.process.watcher import ProcessWatch
from mpsdiag.tracing.watch.model_state import device_label
from mpsdiag.tracing.watch.tensors import fresh
from mpsdiag.tracing.watch.tracer import flag_of, is_up
from mpsdiag.words import EXIT_FOUND

OPTIONS = "MPSDIAG_RUN_WATCH"
ENTRY = "mpsdiag.tracing.process.session:begin"


class WatchOptions(BaseModel):
    """The request of `mpsdiag run` to its processes; `parts`: the folder in which each leaves its report.

    `check_steps`: check the first evaluation instead, or a forward if none came within so many optimizer steps.
    """

    parts: Path
    keep_going: bool = False
    record: Path | None = None
    check_steps: int | None = None


class _Session:
    """One process of a script."""

    def __init__(self, options: WatchOptions) -> None:
        self._options = options
        self._recorded: Path | None = None
        self._checked: ScriptCheck | None = None
        self._first: WatchedForward | None = None
        self._evaluation: list[WatchedForward] = []
        checks = options.check_steps is not None
        self.watch = ProcessWatch(found=self._found, saw=self._saw if checks else lambda _: None)
        self.watch.start()

    def end(self) -> None:
        """At the end of the process: read what is pending, and leave the report."""
        self._check()
        self.watch.stop()
        self._leave(stopped=False)

    def _saw(self, forward: WatchedForward) -> None:
        """Collect the first batches of the first evaluation, then stop the script."""
        if not any(True for _ in forward.model.parameters()):  # a loss
            return
        forward.keep()
        self._first = self._first or forward
        evaluates = not forward.grad and not forward.training
        if evaluates:
            self._evaluation.append(forward)
        late = forward.step >= (self._options.check_steps or 0) and not self._evaluation
        if len(self._evaluation) >= BATCHES or late or (self._evaluation and not evaluates):
            self._check()
            self._stop()

    def _check(self) -> None:
        if self._options.check_steps is not None and self._first is not None and self._checked is None:
            evaluation = self._evaluation
            with self.watch.aside():
                self._checked = check_forwards(evaluation or [self._first], evaluation=bool(evaluation))

    def _found(self, finding: ScriptFinding, forward: WatchedForward) -> None:
        del finding
        if self._options.record is not None and self._recorded is None:
            self._recorded = self.watch.findings.spared(_recorded, self._options.record, forward)
        if not self._options.keep_going and self._options.check_steps is None:
            self._stop()

    def _stop(self) -> NoReturn:
        self._leave(stopped=True)
        sys.stdout.flush()
        sys.stderr.flush()
        # Not an exception: the script may catch all of them.
        os._exit(EXIT_FOUND)

    def _leave(self, *, stopped: bool) -> None:
        report = _report(self.watch, stopped=stopped, recorded=self._recorded)
        report.check = self._checked
        if report.watched.forwards or report.findings:
            write_atomically(self._options.parts / f"{os.getpid()}.json", dumps(report.to_dict()))


def begin() -> None:
    """Watch this process until it ends, as the environment variables say."""
    session = _Session(WatchOptions.model_validate_json(os.environ[OPTIONS]))
    atexit.register(session.end)
    os.register_at_fork(after_in_child=session.watch.forget)
    # A process of multiprocessing that was forked ends without atexit.
    util.register_after_fork(session, lambda one: util.Finalize(one, one.end, exitpriority=0))


class NonFiniteFoundError(MpsdiagError):
    """`watch(stop=True)` has found something; `finding` is the finding."""

    exit_code = EXIT_FOUND

    def __init__(self, finding: ScriptFinding) -> None:
        super().__init__(f"{finding.cause}: {finding.summary} ({finding.place}).")
        self.finding = finding


class Watching:
    """The result of `mpsdiag.watch`: everything seen and found so far or, after the block, in total."""

    def __init__(self, watch: ProcessWatch) -> None:
        self._watch = watch

    @property
    def findings(self) -> list[ScriptFinding]:
        """Each cause and place once, in order of appearance; reads the pending flags."""
        self._watch.read()
        return list(self._watch.findings.all.values())

    @property
    def report(self) -> ScriptReport:
        """The whole report: `print` it, or make it the last line of a notebook cell."""
        self._watch.read()
        return _report(self._watch)


@contextmanager
def watch(model: nn.Module | None = None, *, stop: bool = False) -> Iterator[Watching]:
    """Watch everything that runs in a block of code: forwards, backwards and optimizer steps of any model.

    The code runs unchanged. At the first non-finite value the call is run again in detail, and judged as by `trace`.

    Args:
        model: Watch the calls of this model only.
        stop: Raise at the first finding.

    Returns:
        A context manager that gives a `Watching` with `findings` (each an `Origin` with `file`, `line`, `step` and
        `count`) and a `report` of what was watched.

    Raises:
        BadInput: Not a module.
        NonFiniteFoundError: Something was found, and `stop` is set.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise BadInput(f"model is a {type(model).__name__}, not a torch.nn.Module. Give the loaded model itself.")

    def found(finding: ScriptFinding, _: WatchedForward) -> None:
        if stop:
            raise NonFiniteFoundError(finding)

    watching = ProcessWatch(model, found)
    watching.start()
    try:
        yield Watching(watching)
    finally:
        watching.stop()


def _report(watch: ProcessWatch, *, stopped: bool = False, recorded: Path | None = None) -> ScriptReport:
    active = emulation.active()
    return ScriptReport(
        watched=watch.watched,
        findings=list(watch.findings.all.values()),
        stopped=stopped,
        recorded=None if recorded is None else str(recorded),
        emulated=None if active is None else Emulated(release=active.release, macos=active.macos),
    )


def _recorded(folder: Path, forward: WatchedForward) -> Path | None:
    """Save the batch of a forward in the form that `mpsdiag trace FOLDER` replays."""
    if folder.exists() and any(folder.iterdir()):  # Another process of the script was first.
        return None
    with forward.again() as (model, batch):
        about = About.of(
            model,
            training=forward.training,
            step=forward.step,
            grad=forward.grad,
            autocast=None if forward.autocast is None else str(forward.autocast[1]).removeprefix("torch."),
            noticed="loss" if forward.loss is not None else "logits",
        )
        saved = hasattr(model, "save_pretrained")
        with no_bars() if saved else nullcontext():  # A model that is saved so has imported transformers.
            write_case(folder, model if saved else None, batch, about)
    return folder


BATCHES = 4
"""How many batches of the script are checked."""
FIXES = ("eager", "safe_sdpa")


def check_forwards(forwards: Sequence[WatchedForward], *, evaluation: bool) -> ScriptCheck:
    """Check the model of some calls with their batches, in evaluation mode and without gradients."""
    model = forwards[0].model
    found = ScriptCheck(
        model=type(model).__name__, device=device_label(model), batches=len(forwards), evaluation=evaluation
    )
    try:
        _look(found, [forward for forward in forwards if forward.model is model])
    except Exception as problem:  # noqa: BLE001 - whatever the model raises now, the script did not
        found.notes.append(f"not everything could be checked: {first_line(problem)}")
    return found


def _look(found: ScriptCheck, forwards: Sequence[WatchedForward]) -> None:
    batches: list[Mapping[str, Any]] = []
    for forward in forwards:
        with forward.again() as (model, batch), in_mode(model, training=False, grad=False):
            batches.append(batch)
            found.finite = _finite(model, batch) and found.finite
            for name in FIXES:
                with install(name):
                    found.fixes[name] = _finite(model, batch) and found.fixes.get(name, True)
    config = getattr(forwards[0].model, "config", None)
    if config is not None:
        found.exposure = predict(config, batches, attention=getattr(config, "_attn_implementation", "sdpa"))
    padded = max(range(len(batches)), key=lambda number: _padding(batches[number]))
    if not _padding(batches[padded]):
        found.notes.append("no batch has input_ids and padding in its attention_mask: invariance was not checked")
        return
    with forwards[padded].again() as (model, batch):
        found.invariance = padding_invariance(model, {k: v for k, v in batch.items() if isinstance(v, Tensor)})
    if found.invariance.verdict == "varies":
        restores = {fix.name: fix.restores for fix in found.invariance.fixes}
        found.fixes = {name: right and restores.get(name, False) for name, right in found.fixes.items()}
        found.fixes |= {name: True for name, right in restores.items() if right and name not in FIXES}


def _finite(model: nn.Module, batch: Mapping[str, Any]) -> bool:
    flag = flag_of(model(**fresh(batch)))
    return flag is None or not is_up(float(flag))


def _padding(batch: Mapping[str, Any]) -> int:
    """How many positions of a batch are padding; 0 if unknown."""
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    if not isinstance(ids, Tensor) or not isinstance(mask, Tensor) or mask.shape != ids.shape or ids.dim() != 2:
        return 0
    return int((mask == 0).sum())
