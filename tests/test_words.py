import pytest

from mpsdiag.words import count


@pytest.mark.parametrize(("number", "text"), [(0, "0 cells"), (1, "1 cell"), (2, "2 cells"), (2000, "2,000 cells")])
def test_one_of_a_thing_is_no_plural(number, text):
    assert count(number, "cell") == text
