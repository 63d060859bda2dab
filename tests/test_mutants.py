"""The mutation drill's list keeps up with the code; the drill itself takes half an hour (tests/drills/mutations.py)."""

import pytest
from conftest import REPOSITORY
from drills.mutations import Mutant, mutants


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant.breaks)
def test_each_mutant_still_applies(mutant: Mutant) -> None:
    text = (REPOSITORY / mutant.file).read_text()
    assert mutant.applied_to(text) != text
    for name in mutant.tests.split():
        assert not name.startswith("tests/") or (REPOSITORY / name.partition("::")[0]).exists(), name
