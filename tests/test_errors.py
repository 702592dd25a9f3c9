import pytest

from mpsdiag.errors import BadInput, CannotDecide, nearest, one_of


def test_the_nearest_word_is_suggested_first():
    assert nearest("eagre", ["sdpa", "eager"]) == "Did you mean 'eager'? Choose from: sdpa, eager."


def test_nothing_is_suggested_when_nothing_is_near():
    assert nearest("xyzzy", ["sdpa", "eager"]) == "Choose from: sdpa, eager."


def test_a_known_word_passes_through():
    assert one_of("attention mode", "eager", ["sdpa", "eager"]) == "eager"


def test_an_unknown_word_is_named_with_what_it_should_have_been():
    with pytest.raises(BadInput, match=r"Unknown attention mode 'eagr'\. Did you mean 'eager'"):
        one_of("attention mode", "eagr", ["sdpa", "eager"])


def test_exit_codes_are_those_of_the_contract():
    assert (BadInput.exit_code, CannotDecide.exit_code) == (2, 3)
