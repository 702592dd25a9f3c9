import pytest

from mpsdiag.benching.plan.request import parse_retry, parse_shard
from mpsdiag.errors import BadInput


def test_words_of_options():
    assert parse_shard("2/4") == (2, 4)
    assert parse_retry("error, crash") == {"error", "crash"}
    assert parse_retry("") == frozenset()
    with pytest.raises(BadInput, match="Did you mean 'timeout'"):
        parse_retry("timout")


@pytest.mark.parametrize("text", ["", "2", "a/b", "1/0", "²/4", "1/²", "-1/4", "1/4/4", " 1/4"])
def test_what_is_no_part(text):
    with pytest.raises(BadInput, match="is not of the form I/N"):
        parse_shard(text)


@pytest.mark.parametrize("text", ["1/10001", f"1/{'9' * 5000}", f"{'9' * 5000}/4"])
def test_more_parts_than_anybody_has(text):
    with pytest.raises(BadInput, match="there can be 10000 parts at most") as caught:
        parse_shard(text)
    assert len(str(caught.value)) < 120
