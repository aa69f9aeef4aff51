"""`python -m benchmarks._forking FUNCTION`: forks a process for each request, after a function was called once.

The function, `module:name` in this package, imports what the forked processes are to have. A request is one line of JSON on standard input: `function` and `arguments` as in `_worker`, `environment`,
and `output`, a file that the process writes to. For each, two lines come back: its process id, and its exit
status when it has ended. Started by `_measure.in_forked_process`; it ends with its standard input.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping

from benchmarks import _worker


def serve(prepare: str) -> None:
    """Returns at the end of its input, in the server; a forked process ends with its function."""
    _worker.function_of(prepare)()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        process = fork(request["environment"], request["output"])
        if process == 0:
            _worker.main(line)
        print(process, flush=True)
        print(exit_code(process), flush=True)


def fork(environment: Mapping[str, str], output: str) -> int:
    """0 in the new process, which has this environment and writes to that file; its id in this one."""
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"forked processes would lack {threads - 1} threads"
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        os.environ.update(environment)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (file, 1), (file, 2)):
            os.dup2(source, target)
    return process


def exit_code(process: int) -> int:
    """Once it has ended; negative where a signal ended it."""
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    serve(sys.argv[1])
