"""A child that runs jobs one after the other and writes down each before and after, so that a death names its job.

Started as `python -m mpsdiag.probes.child`, with one JSON document on stdin: `jobs` (pairs of a probe id and a grad
mode), `device`, `emulation` (release, macos, defects, or null), `results` (path of the file to append to). Its stdout
and stderr are nobody's protocol: Metal and MPSGraph print there what they like.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from mpsdiag.serialization import dumps


def main() -> None:
    """Run the jobs of the document on stdin."""
    spec = json.load(sys.stdin)
    _no_core_dump()
    with Path(spec["results"]).open("a", encoding="utf-8") as results:

        def write(line: dict[str, Any]) -> None:
            results.write(dumps(line) + "\n")
            results.flush()

        _run(spec, write)


def _run(spec: dict[str, Any], write: Any) -> None:
    from mpsdiag.emulation import Emulation
    from mpsdiag.probes.run import run_mode, runnable

    given = spec["emulation"]
    defects = None if given is None or given["defects"] is None else tuple(given["defects"])
    emulation = None if given is None else Emulation(given["release"], given["macos"], defects)
    for name, mode in spec["jobs"]:
        write({"started": [name, mode]})
        begin = time.perf_counter()
        result = run_mode(runnable(name), mode, spec["device"], emulation, on_abort="process")
        write({"finished": [name, mode], "result": result, "seconds": time.perf_counter() - begin})


def _no_core_dump() -> None:
    """An abort is expected here; nobody wants a core file of it."""
    try:
        import resource
    except ImportError:  # no such module on Windows, and no core files either
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
