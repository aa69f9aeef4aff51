"""Measurements behind the project's claims: one file per claim, all run by `make bench`.

A benchmark is a module here with a docstring whose first line states the claim, and a function

    def main(quick: bool) -> list[dict[str, str | int | float]]

that returns one row per case, with the same keys in each row. `quick` asks for the short form.
"""
