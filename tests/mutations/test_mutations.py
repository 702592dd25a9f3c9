"""The list of mutations fits the code: a rename that breaks it is noticed here, and not when it is next applied."""

import importlib.util
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("apply_mutations", Path(__file__).with_name("apply_mutations.py"))
applied = sys.modules["apply_mutations"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(applied)


@pytest.mark.parametrize("mutation", applied.mutations(), ids=lambda mutation: mutation.name)
def test_the_line_stands_once_in_its_file_and_the_tests_exist(mutation):
    assert applied.misfit(mutation) is None


def test_a_line_that_is_gone_is_named():
    gone = applied.Mutation("gone", "mpsdiag/words.py", "no such line", "", ["tests/test_words.py"])
    assert "mpsdiag/words.py holds this 0 times" in applied.misfit(gone)
    lost = applied.Mutation("lost", "mpsdiag/nowhere.py", "", "", ["tests/test_words.py"])
    assert "does not exist" in applied.misfit(lost)


def test_names_are_used_once():
    names = [mutation.name for mutation in applied.mutations()]
    assert len(names) == len(set(names))
