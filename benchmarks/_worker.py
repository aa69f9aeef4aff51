"""`python -m benchmarks._worker REQUEST`: calls one function of a benchmark and prints what it returns.

Started by `_measure.in_fresh_process`; the request is a JSON object with `function` and `arguments`.
"""

from __future__ import annotations

import importlib
import json
import sys


def main(request: str) -> None:
    fields = json.loads(request)
    module, _, name = fields["function"].partition(":")
    function = getattr(importlib.import_module(f"benchmarks.{module}"), name)
    print(json.dumps({"result": function(**fields["arguments"])}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
