"""The work of a cell, inside its own process: a verdict (under emulation if asked), or timing without emulation."""

import gc
import time
from collections.abc import Callable
from typing import Any

from mpsdiag.benching.journal.record import EMULATED_ABORT, CellAnswer, Job, Timing
from mpsdiag.emulation.selection import EmulatedAbort
from mpsdiag.scenario.scenario import Measured, Scenario


def run_cell(job: Job) -> CellAnswer:
    """Run one round of a cell.

    Raises whatever the model, the data or the device raises; the surrounding process records it.
    """
    import torch

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    return verdict(job.cell) if job.round == 0 else timing(job.cell)


def verdict(cell: Scenario) -> CellAnswer:
    """Train a few steps and evaluate, under the cell's emulation if any; compare with the float64 reference."""
    from mpsdiag.device import reset_peak_memory
    from mpsdiag.scenario.run import run_scenario

    reset_peak_memory(cell.device)
    try:
        found = run_scenario(cell, invariance=True, causes=False)
    except EmulatedAbort as problem:
        # On a Mac the process would have died; here it survives, so the reason can be given.
        return CellAnswer(status="crash", reason=f"{EMULATED_ABORT}: {str(problem).splitlines()[0]}")
    return CellAnswer(status=found.status, reason=found.reason, measured=_memory(found, cell.device))


def timing(cell: Scenario, clock: Callable[[], float] = time.perf_counter) -> CellAnswer:
    """Time training and evaluation steps on the cell's device, without emulation.

    Every step of a kind runs the same batch, so that samples differ only because of the machine. The first warm-up
    step also tests validity: a cell that cannot run ends there, after a fraction of a second.
    """
    import torch

    from mpsdiag import device as devices
    from mpsdiag.scenario.preparation import prepare

    with prepare(cell) as prepared:
        devices.reset_peak_memory(cell.device)
        # The same batches in every cell: padded ones, on which a fix has work to do, and of those the most expensive.
        train, evaluation = (
            max(batches, key=lambda batch: (_pads(batch) > 0, _tokens(batch)))
            for batches in (prepared.train_batches, prepared.eval_batches)
        )
        works: list[tuple[Callable[[Any], Any], Any, list[float]]] = [(prepared.eval_step, evaluation, [])]
        if cell.max_steps:
            works.insert(0, (prepared.train_step, train, []))
        for work, batch, _ in works * cell.warmup:
            work(batch)
        # The garbage collector would hit some steps and not others, so it is off until later.
        gc.collect()
        gc.disable()
        try:
            for work, batch, samples in works * cell.repeats:
                devices.synchronize(cell.device)
                begin = clock()
                work(batch)
                devices.synchronize(cell.device)
                samples.append(clock() - begin)
        finally:
            gc.enable()
        samples_of = {work.__name__: samples for work, _, samples in works}
    result = Timing(
        device=cell.device,
        warmup=cell.warmup,
        threads=torch.get_num_threads(),
        train_step=samples_of.get("train_step", []),
        eval_step=samples_of["eval_step"],
        train_tokens=_tokens(train),
        train_pads=_pads(train),
        eval_tokens=_tokens(evaluation),
        eval_pads=_pads(evaluation),
    )
    return CellAnswer(status="ok", timing=result, measured=_memory(Measured(), cell.device))


def _memory(found: Measured, device: str) -> Measured:
    from mpsdiag.device import peak_memory, process_peak_memory

    return found.model_copy(
        update={"peak_process_memory": process_peak_memory(), "peak_device_memory": peak_memory(device)}
    )


def _tokens(batch: Any) -> int:
    mask = batch.get("attention_mask")
    return int(batch["input_ids"].numel() if mask is None else mask.sum())


def _pads(batch: Any) -> int:
    return int(batch["input_ids"].numel()) - _tokens(batch)
