"""`python -m benchmarks._forking FUNCTION`: forks a process for each request, after a function was called once.

The function, `module:name` in this package, imports what the forked processes are to have. A request is one line of JSON on standard input: `function` and `arguments` as in `_worker`, `environment`,
and `output`, a file that the process writes to. For each, two lines come back: its process id, and its exit
status when it has ended. Started by `_measure.in_forked_process`; it ends with its standard input.
"""

from __future__ import annotations

import json
import os
import sys
from typing import NoReturn

from benchmarks import _worker


def serve(prepare: str) -> None:
    """Returns at the end of its input, in the server; a forked process ends with its function."""
    _worker.function_of(prepare)()
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"forked processes would lack {threads - 1} threads"
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if process == 0:
            _become(request)
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(request: dict[str, object]) -> NoReturn:
    """What `_worker` does, in this process, which has a copy of the server's memory."""
    os.environ.update(request["environment"])  # type: ignore[arg-type]
    file = os.open(str(request["output"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    _worker.main(json.dumps(request))


if __name__ == "__main__":
    serve(sys.argv[1])
