import pytest

from mpsdiag.benching.plan.request import parse_retry, parse_shard
from mpsdiag.errors import BadInput


def test_words_of_options():
    assert parse_shard("2/4") == (2, 4)
    assert parse_retry("error, crash") == {"error", "crash"}
    assert parse_retry("") == frozenset()
    with pytest.raises(BadInput, match="Did you mean 'timeout'"):
        parse_retry("timout")


NO_PARTS = ["", "2", "a/b", "1/0", "²/4", "1/²", "-1/4", "1/4/4", " 1/4", "1/10000"]


@pytest.mark.parametrize("text", [*NO_PARTS, f"1/{'9' * 5000}", f"{'9' * 5000}/4"])
def test_what_is_no_part(text):
    with pytest.raises(BadInput, match="is not of the form I/N, such as 2/4, with 9999 parts at most") as caught:
        parse_shard(text)
    assert len(str(caught.value)) < 120
