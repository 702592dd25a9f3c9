"""What is being done, a few words at a time, as a bar on a terminal."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar() -> Iterator[Callable[[str], None]]:
    """Show what is being done where stderr is a terminal; silence in a pipe. What stderr gets meanwhile stands above.

    Words that end in `3 of 16` draw a bar with the time left.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as drawn:
        task = drawn.add_task("starting", total=None)

        def show(words: str) -> None:
            counted = re.search(r"(\d+) of (\d+)$", words)
            if counted is None:
                drawn.reset(task, description=words, total=None)
                return
            done, total = int(counted[1]) - 1, int(counted[2])
            if done == 0 or drawn.tasks[0].total != total:
                drawn.reset(task, total=total)
            drawn.update(task, description=words, completed=done, total=total)

        yield show
