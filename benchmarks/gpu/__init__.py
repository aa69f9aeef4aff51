"""Measurements that need a CUDA device: `make bench-gpu`, or `python -m benchmarks.gpu --help`.

Each module states what it measures in its docstring and has a function

    def main(run: Run) -> Outcome

`Run` (`_run.py`) says which layers and ways are wanted, how much time is left, and starts processes; what
does not fit into the time is left out with a remark. Modules whose name starts with `_` are shared:

    _run.py     the wanted cases, the time budget, fresh processes, logs
    _llama.py   the Llama block stack of the yardstick, with its marks
    _ways.py    the ways to run a model
"""
