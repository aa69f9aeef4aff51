"""`python -m benchmarks._worker REQUEST`: calls one function of a benchmark and prints what it returns.

Started by `_measure.in_fresh_process`; the request is a JSON object with `function` and `arguments`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from operator import attrgetter
from typing import Any


def main(request: str) -> None:
    fields = json.loads(request)
    result = function_of(fields["function"])(**fields["arguments"])
    print(json.dumps({"result": result}), flush=True)


def function_of(path: str) -> Callable[..., Any]:
    """The function that is called `module:name` in this package."""
    module, _, name = path.partition(":")
    function: Callable[..., Any] = attrgetter(name)(importlib.import_module(f"benchmarks.{module}"))
    return function


if __name__ == "__main__":
    main(sys.argv[1])
