"""The planted faults fit the library as it is: each changes one place, into a program."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tests.mutants.faults import FAULTS

PACKAGE = Path(__file__).parent.parent / "src" / "regional_inductor"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_fits(fault):
    text = (PACKAGE / fault.file).read_text()
    assert text.count(fault.old) == 1
    changed = ast.dump(ast.parse(text.replace(fault.old, fault.new)))
    assert changed != ast.dump(ast.parse(text))
    assert all((PACKAGE.parent.parent / test).exists() for test in fault.tests if "/" in test)


def test_names_are_unique():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
