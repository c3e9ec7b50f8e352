"""The arithmetic of waiting."""

from hypothesis import given
from hypothesis import strategies as st

from pmwatch.delivery.retry import RetryPolicy

SECONDS = st.floats(0, 1e9, allow_nan=False)
JITTER = st.floats(0, 1, allow_nan=False)
POLICIES = st.builds(RetryPolicy, st.floats(0.01, 60), st.floats(60, 86400), st.floats(1, 1e7))


@given(POLICIES, SECONDS, JITTER)
def test_a_wait_lies_within_its_bounds(policy: RetryPolicy, age: float, jitter: float) -> None:
    wait = policy.wait(age, jitter=lambda: jitter)
    assert 0 < wait <= policy.longest
    assert wait <= max(policy.first, 2 * age) * 1.0001
    assert wait >= 0.1 * min(policy.first, policy.longest)


@given(POLICIES, SECONDS, SECONDS, JITTER)
def test_older_trouble_never_waits_less(policy: RetryPolicy, one: float, other: float, jitter: float) -> None:
    younger, older = sorted((one, other))
    assert policy.wait(younger, jitter=lambda: jitter) <= policy.wait(older, jitter=lambda: jitter)


@given(POLICIES, SECONDS)
def test_without_arguments_the_jitter_is_random(policy: RetryPolicy, age: float) -> None:
    low, high = policy.wait(age, jitter=lambda: 0.0), policy.wait(age, jitter=lambda: 1.0)
    assert low <= policy.wait(age) <= high
    assert high > low


@given(POLICIES)
def test_few_attempts_until_a_file_is_given_up(policy: RetryPolicy) -> None:
    # The waits grow with the age, so the number of attempts is logarithmic until the longest wait is reached.
    age, attempts = 0.0, 0
    while age < policy.longest:
        age += policy.wait(age, jitter=lambda: 0.5)
        attempts += 1
    assert attempts < 40


def test_giving_up_is_a_matter_of_age_alone() -> None:
    policy = RetryPolicy(give_up_after=60)
    assert not policy.given_up(59.9)
    assert policy.given_up(60)
