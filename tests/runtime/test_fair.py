"""Who is served next, and that nobody waits for ever."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from vitrail.core import GenerateOptions
from vitrail.fair import LEVEL_TOKENS, Claim, FairQueue


def served(queue):
    return [queue.pop() for _ in range(len(queue))]


def test_requests_of_one_user_are_served_in_the_order_they_came():
    queue = FairQueue()
    for number in range(20):
        queue.push(number, Claim(tokens=1 + number * 7 % 5))
    assert queue.head() == 0
    assert served(queue) == list(range(20))
    assert queue.head() is None


def test_a_user_with_one_request_does_not_wait_for_another_users_hundred():
    queue = FairQueue()
    for number in range(100):
        queue.push(("many", number), Claim("many", tokens=50))
    queue.pop()
    queue.push(("one", 0), Claim("one", tokens=50))
    assert ("one", 0) in served(queue)[:2]


@pytest.mark.parametrize("seed", range(10))
def test_users_who_always_wait_get_the_same_tokens_up_to_a_few_requests(seed):
    chance = random.Random(seed)
    queue, got, largest = FairQueue(), Counter(), 200
    costs = {user: largest // (1 + 3 * place) for place, user in enumerate("abc")}

    def ask(user):
        tokens = chance.randint(1, costs[user])
        queue.push((user, tokens), Claim(user, tokens=tokens))

    for user in "abc":
        for _ in range(chance.randint(1, 9)):
            ask(user)
    for _ in range(2000):
        user, tokens = queue.pop()
        got[user] += tokens
        ask(user)
    assert max(got.values()) - min(got.values()) < 4 * largest + 0.05 * max(got.values())


def test_an_urgent_request_overtakes_everybody():
    queue = FairQueue()
    for number in range(50):
        queue.push(number, Claim(f"user {number % 5}", tokens=1000))
    queue.push("urgent", Claim("late", priority=4, tokens=1000))
    assert queue.head() == "urgent"


@pytest.mark.parametrize("users", [1, 3, 1000])
def test_an_endless_stream_of_urgent_requests_starves_nobody(users):
    queue, tokens = FairQueue(), 1000
    queue.push("patient", Claim("patient", priority=1, tokens=tokens))
    for number in range(10**5):
        queue.push("urgent", Claim(f"user {number % users}", priority=0, tokens=tokens))
        if queue.pop() == "patient":
            break
    else:
        pytest.fail("starved")
    assert number >= LEVEL_TOKENS / tokens - 1


def test_who_left_is_not_served():
    queue = FairQueue()
    for number in range(6):
        queue.push(number)
    queue.keep(lambda number: number % 2 == 0)
    assert (list(queue), len(queue)) == ([0, 2, 4], 3)


def test_in_a_full_queue_the_latest_of_the_user_with_most_gives_way():
    queue = FairQueue()
    for number, user in enumerate("aabaab"):
        queue.push(number, Claim(user))
    assert queue.crowd(Claim("new")) == 4
    assert queue.crowd(Claim("b")) == 4
    assert queue.crowd(Claim("a")) is None


def test_nobody_gives_way_to_a_user_who_has_as_many_but_one():
    queue = FairQueue()
    for number, user in enumerate("aab"):
        queue.push(number, Claim(user))
    assert queue.crowd(Claim("b")) is None


def test_the_least_urgent_gives_way_to_the_more_urgent_whoever_asks():
    queue = FairQueue()
    queue.push("low", Claim(priority=9))
    queue.push("high", Claim(priority=0))
    assert queue.crowd(Claim(priority=5)) == "low"
    assert queue.crowd(Claim(priority=9)) is None
    queue.keep(lambda item: item == "high")
    assert queue.crowd(Claim(priority=5)) is None
    assert FairQueue().crowd(Claim()) is None


def test_a_user_who_waited_for_nothing_has_no_credit_from_it():
    queue = FairQueue()
    for number in range(10):
        queue.push(("a", number), Claim("a", tokens=10))
    for _ in range(9):
        queue.pop()
    for number in range(5):
        queue.push(("late", number), Claim("late", tokens=10))
    assert served(queue).index(("a", 9)) <= 1


def test_the_priority_of_a_claim_is_that_of_a_request_without_one():
    assert Claim().priority == GenerateOptions().priority
