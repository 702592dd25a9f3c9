import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from mpsdiag.bisect.search import Ask, Bracket, OpposedEnds, SameEnds, UntestableEnd, ahead, decide, untestable


def run(history, find=None):
    """Search a history of outcomes; the decision, the numbers in the order they were tested, the steps left."""
    known, order, left = {}, [], []
    while isinstance(step := decide(len(history), known, find), Ask):
        assert step.number not in known
        order.append(step.number)
        left.append(step.left)
        known[step.number] = history[step.number]
        assert len(order) <= len(history)
    return step, order, left


@st.composite
def histories(draw, skips=True):
    """One change of outcome somewhere, with releases that cannot be tested anywhere but at the ends."""
    before, after = draw(st.sampled_from([("good", "bad"), ("bad", "good")]))
    total = draw(st.integers(2, 90))
    change = draw(st.integers(1, total - 1))
    history = [before] * change + [after] * (total - change)
    if skips and total > 2:
        for number in draw(st.sets(st.integers(1, total - 2))):
            history[number] = "skip"
    return history


@given(histories())
def test_the_bracket_holds_the_change_and_only_untestable_releases(history):
    step, order, _ = run(history)
    assert isinstance(step, Bracket)
    assert step.find == ("break" if history[0] == "good" else "fix")
    assert history[step.before] == history[0]
    assert history[step.after] == history[-1]
    assert all(history[number] == "skip" for number in untestable(step))
    assert set(untestable(step)) <= set(order)  # each of them was really tried


@given(histories(skips=False))
def test_without_skips_the_bracket_is_exact_and_costs_two_ends_and_the_halvings(history):
    step, order, left = run(history)
    assert step.after == step.before + 1
    assert len(order) <= math.ceil(math.log2(len(history))) + 2
    assert all(one >= len(order) - done for done, one in enumerate(left))  # what was shown was no lie


@given(histories(), st.data())
def test_a_search_that_is_resumed_asks_the_same(history, data):
    _, order, _ = run(history)
    cut = data.draw(st.integers(0, len(order)))
    known = {number: history[number] for number in order[:cut]}
    step = decide(len(history), known)
    assert (step.number == order[cut]) if cut < len(order) else isinstance(step, Bracket)


@given(histories(skips=False))
def test_the_next_one_was_built_ahead(history):
    _, order, _ = run(history)
    known = {}
    for now, following in itertools.pairwise(order):
        guesses = ahead(len(history), known, now)
        assert following in guesses
        assert len(guesses) <= 2
        known[now] = history[now]


@given(st.lists(st.sampled_from(["good", "bad", "skip"]), min_size=2, max_size=60))
def test_any_history_ends_with_a_decision_that_is_true_of_it(history):
    step, order, _ = run(history)
    if isinstance(step, UntestableEnd):
        assert history[step.number] == "skip"
        assert step.number in {0, len(history) - 1}
    elif isinstance(step, SameEnds):
        assert order == [0, len(history) - 1]
        assert history[0] == history[-1] == step.outcome
    else:
        assert history[step.before] != history[step.after]
        assert all(history[number] == "skip" for number in untestable(step))


def test_a_long_range_of_skips_around_the_change_is_named_whole():
    history = ["bad"] * 5 + ["skip"] * 6 + ["good"] * 9
    assert run(history)[0] == Bracket("fix", 4, 11)


def test_what_was_not_asked_for_is_said():
    assert run(["good", "good", "bad"], "fix")[0] == OpposedEnds("break")
    assert run(["good", "good", "bad"], "break")[0] == Bracket("break", 1, 2)
