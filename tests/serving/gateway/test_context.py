from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway import context

SYSTEM = {"role": "system", "content": "Be brief."}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def stored(number: int, tokens: int) -> bytes:
    reply = {"role": "assistant", "content": f"a{number}"}
    return orjson.dumps({"messages": [user(f"q{number}"), reply], "tokens": tokens})


def test_turns_stand_between_the_system_message_and_what_is_said_now() -> None:
    messages, dropped = context.with_history([SYSTEM, user("now")], [stored(1, 5)], 100)
    assert [m["content"] for m in messages] == ["Be brief.", "q1", "a1", "now"]
    assert dropped == 0


def test_the_oldest_turns_go_first() -> None:
    turns = [stored(number, 10) for number in range(5)]
    messages, dropped = context.with_history([user("now")], turns, 25)
    assert [m["content"] for m in messages] == ["q3", "a3", "q4", "a4", "now"]
    assert dropped == 3


@given(
    st.lists(st.integers(1, 50), max_size=12),
    st.integers(1, 200),
)
def test_what_is_kept_is_the_longest_suffix_that_fits(sizes: list[int], budget: int) -> None:
    turns = [stored(number, size) for number, size in enumerate(sizes)]
    messages, dropped = context.with_history([user("now")], turns, budget)
    assert len(messages) == 2 * (len(turns) - dropped) + 1
    assert sum(sizes[dropped:]) <= budget
    if dropped:
        assert sum(sizes[dropped - 1 :]) > budget


def test_a_turn_holds_what_was_said_without_the_system_message() -> None:
    turn = orjson.loads(context.turn([SYSTEM, user("Hello")], "Hi", 3))
    assert turn["messages"] == [user("Hello"), {"role": "assistant", "content": "Hi"}]
    assert turn["tokens"] == 3 + context.estimated_tokens([user("Hello")])


def test_tokens_are_not_counted_below_what_short_texts_take() -> None:
    # 1.3 tokens a word of English is a common rule of thumb.
    words = "The quick brown fox jumps over the lazy dog and runs away"
    assert context.estimated_tokens([user(words)]) >= 12
