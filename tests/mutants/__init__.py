"""Faults planted in copies of the library, each of which the tests must notice: `make mutants`."""
