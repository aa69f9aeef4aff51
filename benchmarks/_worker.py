"""`python -m benchmarks._worker REQUEST`: calls one function of a benchmark and prints what it returns.

Started by `_measure.in_fresh_process`; the request is a JSON object with `function` and `arguments`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NoReturn


def main(request: str) -> NoReturn:
    fields = json.loads(request)
    result = function_of(fields["function"])(**fields["arguments"])
    print(json.dumps({"result": result}), flush=True)
    sys.stderr.flush()
    # Nothing is left to do, and taking torch apart takes up to two seconds, in a forked process above all.
    os._exit(0)


def function_of(path: str) -> Callable[..., Any]:
    """The function that is called `module:name` in this package."""
    module, _, name = path.partition(":")
    function: Callable[..., Any] = attrgetter(name)(importlib.import_module(f"benchmarks.{module}"))
    return function


if __name__ == "__main__":
    main(sys.argv[1])
