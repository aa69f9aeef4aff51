"""Measurements behind the project's claims: one file per claim, all run by `make bench`.

A benchmark is a module here with a docstring whose first line states the claim, and a function

    def main(quick: bool) -> Outcome | list[dict[str, str | int | float | None]]

that returns its tables and targets (`_outcome.py`), or the rows of one table. `quick` asks for the short
form. A module may also have `plot(tables, figure)`, which draws into a matplotlib figure. Modules whose
name starts with `_` are shared by the benchmarks:

    _outcome.py   tables, targets and their verdicts, Markdown
    _measure.py   alternating runs, fresh processes, memory, growth exponents
    _worker.py    what a fresh process runs
    _graphs.py    FX graphs of any size
    _models.py    a Llama-like model with marks
    _peers.py     the other ways to run the same code, and what is read off Inductor
"""
