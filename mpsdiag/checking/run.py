"""`check`: probe the kernel, run the scenario, try the fixes, and assemble the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Literal

from mpsdiag import device as devices
from mpsdiag import environment
from mpsdiag.checking.advice import advise, blame, why
from mpsdiag.checking.diagnosis import (
    Diagnosis,
    FixResult,
    Judged,
    KnownDefect,
    ProbeResult,
    ScenarioResult,
    invariance_verdict,
    kernel_verdict,
    overall,
    scenario_verdict,
)
from mpsdiag.emulation.selection import Emulation
from mpsdiag.errors import BadInput, CannotDecide, one_of
from mpsdiag.findings import Advice, Emulated
from mpsdiag.probes.declaration import Finding
from mpsdiag.probes.known import CATALOGUE, find
from mpsdiag.probes.run import predicted, run_level, run_probe, surprises
from mpsdiag.quiet import errors_only, no_bars
from mpsdiag.scenario.scenario import Measured, Scenario
from mpsdiag.words import AUTO_TASK, BUILTIN_DATASET, DEFAULT_MODEL, LARGEST_SEED, PADDING_SIDES, TASKS

if TYPE_CHECKING:
    import torch

FIXES: tuple[tuple[Literal["attention", "trainer"], str], ...] = (
    ("attention", "eager"),
    ("attention", "safe_sdpa"),
    ("trainer", "mps_safe"),
    ("trainer", "cpu_loss"),
)
Progress = Callable[[str], None]


def check(
    device: str = "auto",
    *,
    model: str | PathLike[str] = DEFAULT_MODEL,
    dataset: str | PathLike[str] = "synthetic",
    task: str = "auto",
    level: int = 2,
    probes: str | Sequence[str] = (),
    padding_side: str = "left",
    dtype: str | torch.dtype = "float32",
    max_length: int | None = None,
    seed: int = 0,
    emulate: str | None = None,
    emulate_macos: int = 15,
    progress: Progress = lambda _: None,
) -> Diagnosis:
    """Find out whether attention on a device is wrong, why, and which fix resolves it.

    Args:
        device: auto, cpu, mps, cuda[:N] or xpu.
        model: A built-in model, a local folder or a hub name, for the scenario.
        dataset: `synthetic`, a local file or folder, or a hub name.
        task: Hugging Face's name of the model's task; `auto` reads it from the config.
        level: 1 probes fully masked rows; 2 adds the scenario and padding invariance; 3 the catalogue and the sweep.
        probes: One or more ids of probes to run instead of those of a level; the scenario is then left out.
        padding_side: left or right.
        dtype: float32, bfloat16 or float16 (and float64 on the CPU), as a name or a torch dtype.
        max_length: Longest sequence, in tokens. If None, 128 for the built-in data and 512 for other data.
        seed: Seed of weights and data, from 0 to 2**32 - 1.
        emulate: Torch release whose MPS kernels are emulated on the CPU, such as "2.8".
        emulate_macos: The macOS version to emulate.
        progress: Called with a few words about what is being done.

    Raises:
        BadInput: An argument, model or data set cannot be used.
    """
    if level not in (1, 2, 3):
        raise BadInput(f"Level {level} does not exist. Choose 1 (the kernel), 2 (and the scenario) or 3 (everything).")
    model = _text("model", model, '"tiny-llama", a folder or a hub name')
    dataset = _text("dataset", dataset, '"synthetic", a file or a hub name')
    device = _text("device", device, '"auto" or "mps"')
    dtype = _dtype_name(dtype)
    seed = _seed(seed)
    # A single text is one probe.
    probes = [find(_text("probes", one, '"SDPA001"')).id for one in ([probes] if isinstance(probes, str) else probes)]
    one_of("padding side", padding_side, PADDING_SIDES)
    one_of("task", task, (AUTO_TASK, *TASKS))
    emulation = _emulation(device, emulate, emulate_macos)
    where = "cpu" if emulation else devices.resolve(device)
    devices.torch_dtype(dtype)
    if emulation is not None:
        emulation.require_dtype(dtype)
    case = Scenario.model_validate(
        {
            "model": model,
            "task": task,
            "dataset": dataset,
            "max_length": max_length or (128 if dataset == BUILTIN_DATASET else 512),
            "padding_side": padding_side,
            "dtype": dtype,
            "device": where,
            "emulate": None if emulation is None else emulation.release,
            "emulate_macos": None if emulation is None else emulation.macos,
            "seed": seed,
        }
    )
    state = devices.usable(where)
    if not state.ok:
        return _unusable(level, where, state.reason)
    progress("probing the attention kernel")
    if probes:
        findings = [run_probe(probe, device=where, emulation=emulation) for probe in probes]
    else:
        findings = run_level(3 if level == 3 else 1, where, emulation, progress)
    outcome, fixes = None, list[FixResult]()
    if level >= 2 and not probes:
        progress("loading transformers")
        with no_bars(progress):
            outcome, fixes = _scenario_and_fixes(case, progress)
    return _put_together(level, case, findings, outcome, fixes, probes)


def _text(name: str, value: Any, example: str) -> str:
    """The text or path that an argument was given."""
    found = fspath(value) if isinstance(value, PathLike) else value
    if isinstance(found, str):
        return found
    raise BadInput(f"{name} is {_shown(value)}; give a text, such as {example}.")


def _dtype_name(value: Any) -> str:
    """The name of a dtype: `torch.float16` is `float16`."""
    import torch

    word = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
    return _text("dtype", word, '"float16", or torch.float16')


def _seed(value: Any) -> int:
    """A seed that Python, NumPy and torch all take."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_SEED:
        return value
    raise BadInput(f"seed is {_shown(value)}; give a whole number from 0 to {LARGEST_SEED}.")


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"a {type(value).__name__}"


def _emulation(device: str, release: str | None, macos: int) -> Emulation | None:
    if release is None:
        return None
    if device not in ("auto", "cpu"):
        raise BadInput(f"--emulate runs on the CPU, not on '{device}'. Leave out --device, or --emulate.")
    return Emulation(release, macos)


# The trainers would warn of the very defects that the diagnosis reports.
@errors_only("mpsdiag")
@errors_only("transformers")
def _scenario_and_fixes(case: Scenario, progress: Progress) -> tuple[Measured, list[FixResult]]:
    """The stock scenario, and each fix on it if it went wrong."""
    from mpsdiag.scenario.run import run_scenario

    reason = devices.supports_dtype(case.device, case.dtype)
    if reason:
        raise CannotDecide(f"{reason}. Choose another --dtype.")
    progress(f"training and evaluating {case.model}")
    outcome = run_scenario(case, invariance=True)
    if outcome.status != "ok":
        progress("looking for the cause")
        outcome.cause = blame(case, outcome)
    fixes = []
    if scenario_verdict(outcome).verdict == "affected":
        for count, (kind, name) in enumerate(FIXES, 1):
            progress(f"trying {name}, {count} of {len(FIXES)}")
            fixed = run_scenario(
                case.model_copy(update={"attn_implementation" if kind == "attention" else "trainer": name})
            )
            fixes.append(
                FixResult(
                    name=name,
                    kind=kind,
                    resolves=fixed.status == "ok",
                    exact=fixed.status == "ok" and bool(fixed.exact),
                    max_abs_logit_diff=fixed.max_abs_logit_diff,
                    eval_loss=float("nan") if fixed.eval_loss is None else fixed.eval_loss,
                    loss_moved_by=fixed.loss_moved_by,
                    why=why(name, fixed),
                )
            )
    return outcome, fixes


def _put_together(
    level: int,
    case: Scenario,
    findings: Sequence[Finding],
    outcome: Measured | None,
    fixes: list[FixResult],
    chosen: Sequence[str],
) -> Diagnosis:
    probes = [ProbeResult.model_validate(finding) for finding in findings]
    kernel = kernel_verdict(probes)
    scenario = None if outcome is None else scenario_verdict(outcome)
    invariance = None if outcome is None else outcome.invariance
    verdict = overall(kernel, scenario, None if invariance is None else invariance_verdict(invariance))
    emulated = Emulated(release=case.emulation.release, macos=case.emulation.macos) if case.emulation else None
    seen = {probe.id for probe in probes}
    note = None if outcome is None else outcome.missing_weights
    row = _table_row(case)
    return Diagnosis(
        verdict=verdict.verdict,
        reason=verdict.reason,
        level=level,
        device=case.device,
        emulated=emulated,
        environment=environment.gather(devices.accelerators(probe=False)),
        kernel=kernel,
        probes=probes,
        scenario=None if outcome is None or scenario is None else _scenario_result(case, outcome, scenario),
        invariance=invariance,
        fixes=fixes,
        advice=advise(verdict, probes, outcome, case, fixes, emulated),
        notes=[note] if note else [],
        differs_from_release=surprises(findings, *row) if row and not case.emulation else [],
        not_probed=[
            KnownDefect(id=name, title=CATALOGUE[name].title)
            for name in (predicted(*row) if row and not chosen and level < 3 else ())
            if name not in seen
        ],
    )


def _table_row(case: Scenario) -> tuple[str, int] | None:
    """The torch release and macOS whose MPS kernels run here; None if none do."""
    if case.emulation:
        return case.emulation.release, case.emulation.macos
    if devices.kind_of(case.device) != "mps":
        return None
    return environment.versions()["torch"], environment.macos() or 15


def _unusable(level: int, where: str, reason: str) -> Diagnosis:
    return Diagnosis(
        verdict="undecided",
        reason=f"device '{where}' cannot be used here: {reason}",
        level=level,
        device=where,
        emulated=None,
        environment=environment.gather(devices.accelerators(probe=False)),
        kernel=Judged(verdict="undecided", reason=reason),
        advice=[
            Advice(
                text="Run this on a machine where the device works, or emulate the kernels of a release.",
                commands=["mpsdiag env", "mpsdiag check --emulate 2.8"],
            )
        ],
    )


def _scenario_result(case: Scenario, outcome: Measured, judged: Judged) -> ScenarioResult:
    """The scenario in the document: what was run, what was measured, and what follows."""
    fields = {
        **dict(case),
        **dict(outcome),
        **dict(judged),
        "attention": case.attn_implementation,
        "train_loss": outcome.train_losses[-1],
        "eval_batches": len(outcome.eval_losses),
    }
    return ScenarioResult(**{name: fields[name] for name in ScenarioResult.model_fields})
