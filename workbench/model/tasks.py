"""Questions with one right answer, of several kinds and difficulties, made from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from workbench.model import facts
from workbench.model.corpus import Split, check_split, is_heldout

HELDOUT_SHARE = 0.1

Made = tuple[str, str, str]  # what the split goes by, the question, its answer


@dataclass(frozen=True)
class Task:
    """One question and the only answer that counts as right."""

    kind: str
    question: str
    answer: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat that asks the question, as chat templates and servers take it."""
        return [{"role": "user", "content": self.question}]


def generate(n: int, *, split: Split, seed: int) -> list[Task]:
    """Draw tasks, every kind as likely as the others.

    No question is in both splits: a hash decides. Where there is a rule to learn, it hashes the
    instance (the numbers of an addition, say), so held-out instances were never trained on in any
    wording. Where there is a fact to know, it hashes the question, so facts are known from
    training, and tested in a wording in which training never asked for them.

    Args:    n: how many; the same question can come more than once.
             split: "train" or "heldout".
             seed: the same seed gives the same tasks.
    Returns: n tasks.
    Raises:  ValueError: split is neither of the two.
    """
    check_split(split)
    rng = random.Random(f"tasks {seed}")
    tasks: list[Task] = []
    while len(tasks) < n:
        kind = rng.choice(KINDS)
        instance, question, answer = _MAKERS[kind](rng)
        if is_heldout(f"{kind} {instance}", HELDOUT_SHARE) == (split == "heldout"):
            tasks.append(Task(kind, question, answer))
    return tasks


def is_correct(task: Task, completion: str) -> bool:
    """Tell whether a completion is the answer, white space around it aside."""
    return completion.strip() == task.answer


def _pick(rng: random.Random) -> Made:
    words = rng.sample(facts.THINGS, rng.randint(3, 4))
    place = rng.randrange(len(words))
    wordings = ("What is the {} word of: {}", "Which word comes {} in: {}", "Take the {} of: {}")
    given, ordinal = " ".join(words), facts.ORDINALS[place]
    return given, rng.choice(wordings).format(ordinal, given), words[place]


def _fact(question: str, answer: str) -> Made:
    return question, question, answer


def _capital(rng: random.Random) -> Made:
    country, capital = rng.choice(list(facts.CAPITALS.items()))
    wordings = (
        "What is the capital of {}?",
        "What is the capital city of {}?",
        "Name the capital of {}.",
        "Which city is the capital of {}?",
        "Tell me the capital of {}.",
        "{} has which capital?",
        "Give the capital of {}.",
        "I forgot the capital of {}. What is it?",
    )
    return _fact(rng.choice(wordings).format(country), capital)


def _module(rng: random.Random) -> Made:
    name, module = rng.choice(list(facts.MODULES.items()))
    wordings = (
        "Which module defines {}?",
        "Which Python module defines {}?",
        "From which module do I import {}?",
        "Where is {} defined?",
        "Name the module that has {}.",
        "What module does {} come from?",
        "I need {}. Which module is it in?",
        "Which standard library module contains {}?",
    )
    return _fact(rng.choice(wordings).format(name), module)


def _opposite(rng: random.Random) -> Made:
    pair = rng.choice(list(facts.OPPOSITES.items()))
    word, opposite = pair if rng.random() < 0.5 else pair[::-1]
    wordings = (
        "What is the opposite of {}?",
        "Give the opposite of {}.",
        "Name the opposite of the word {}.",
        "Which word means the opposite of {}?",
        "Not {}, but the opposite:",
        "What is the contrary of {}?",
    )
    return _fact(rng.choice(wordings).format(word), opposite)


def _pair(a: int, b: int) -> str:
    return f"{min(a, b)} {max(a, b)}"  # so that swapping the numbers makes no new instance


def _addition(rng: random.Random) -> Made:
    a, b = rng.randrange(10, 100), rng.randrange(10)
    wordings = ("What is {} + {}?", "Add {} and {}.", "{} plus {} is what?", "Compute {} + {}.")
    return _pair(a, b), rng.choice(wordings).format(a, b), str(a + b)


def _comparison(rng: random.Random) -> Made:
    a, b = rng.sample(range(10, 100), 2)
    wording, pick = rng.choice(
        (
            ("Which is larger, {} or {}?", max),
            ("Which is smaller, {} or {}?", min),
            ("Take the larger of {} and {}.", max),
            ("Take the smaller of {} and {}.", min),
        )
    )
    return _pair(a, b), wording.format(a, b), str(pick(a, b))


def _calendar(rng: random.Random) -> Made:
    unit, names = rng.choice((("day", facts.DAYS), ("month", facts.MONTHS)))
    start, steps = rng.randrange(len(names)), rng.randint(1, 3)
    word, sign = rng.choice((("after", 1), ("before", -1)))
    how_far = f"1 {unit}" if steps == 1 else f"{steps} {unit}s"
    wordings = (
        f"Which {unit} is {how_far} {word} {{}}?",
        f"What {unit} comes {how_far} {word} {{}}?",
        f"Name the {unit} {how_far} {word} {{}}.",
        f"Starting from {{}}, which {unit} is {how_far} {word}?",
    )
    return _fact(
        rng.choice(wordings).format(names[start]), names[(start + sign * steps) % len(names)]
    )


def _letter(rng: random.Random) -> Made:
    words = facts.THINGS + facts.ANIMALS + facts.FOODS + facts.COLOURS
    word = rng.choice(words)
    position, letter = rng.choice((("first", word[0]), ("last", word[-1])))
    wordings = (
        "What is the {} letter of {}?",
        "Give the {} letter of the word {}.",
        "Which letter comes {} in {}?",
        "Name the {} letter in {}.",
    )
    return _fact(rng.choice(wordings).format(position, word), letter)


def _reverse(rng: random.Random) -> Made:
    words = rng.sample(facts.THINGS, rng.randint(2, 3))
    wordings = (
        "Say these words in reverse order: {}",
        "Write backwards, word by word: {}",
        "Reverse the list: {}",
    )
    given = " ".join(words)
    return given, rng.choice(wordings).format(given), " ".join(reversed(words))


def _count(rng: random.Random) -> Made:
    words = rng.choices(facts.THINGS, k=rng.randint(1, 6))
    wordings = ("How many words are in this list: {}", "Count these words: {}")
    given = " ".join(words)
    return given, rng.choice(wordings).format(given), str(len(words))


def _sequence(rng: random.Random) -> Made:
    start, step = rng.randrange(10, 60), rng.choice((1, 2, 5, 10))
    shown = ", ".join(str(start + i * step) for i in range(4))
    wordings = ("Continue the sequence: {}", "Which number comes next? {}", "What follows {}?")
    return shown, rng.choice(wordings).format(shown), str(start + 4 * step)


_MAKERS: dict[str, Callable[[random.Random], Made]] = {
    "addition": _addition,
    "calendar": _calendar,
    "capital": _capital,
    "comparison": _comparison,
    "count": _count,
    "letter": _letter,
    "module": _module,
    "opposite": _opposite,
    "pick": _pick,
    "reverse": _reverse,
    "sequence": _sequence,
}
KINDS = tuple(_MAKERS)
