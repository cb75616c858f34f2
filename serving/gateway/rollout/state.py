"""What is rolled out now, and which conversation goes where: values and pure functions, no I/O.

    steady --start--> canary --sound for a window--> next share ... --passed--> promote --> promoted
       |                 +---- worse, undecided for too long, no healthy replica ----> rolled_back
       +----switch--> switched ----------------------------------------------> as above

`steady`, `promoted` and `rolled_back` begin a new rollout; each change gives a new state with a higher
version, and nothing else is ever written.
"""

from __future__ import annotations

import secrets
from datetime import datetime
from hashlib import blake2b
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from serving.errors import InputError
from serving.gateway.analysis import Analysis, Verdict
from serving.values import Value

Phase = Literal["steady", "canary", "switched", "promoted", "rolled_back"]
Track = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=63)]
UNDER_WAY: tuple[Phase, ...] = ("canary", "switched")


class RolloutState(Value):
    """Which track takes which share of the conversations, and how that came about."""

    version: int = Field(0, ge=0)
    """Grows with every write; a write is refused unless it follows the version that it was made from."""
    rollout: int = Field(0, ge=0)
    """Grows with every start and switch; users are counted by it."""
    period: int = Field(0, ge=0)
    """Grows with every change of the split; requests are counted by it."""
    phase: Phase = "steady"
    stable: Track
    candidate: Track | None = None
    """The new track; after a promotion the one that it replaced, to which a rollback returns."""
    share: float = Field(0.0, ge=0, le=1)
    """Of the conversations that go to the candidate."""
    step: int = Field(0, ge=0)
    """Index of the share in `shares`."""
    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    rule: Analysis | None = None
    """None looks at nothing: only the operator and lost replicas decide."""
    auto_promote: bool = False
    looks: int = Field(0, ge=0)
    """Taken in this step."""
    passed_at_look: int | None = None
    """The look of this step at which the last share passed; from then on it waits for `promote`."""
    verdict: Verdict | None = None
    """Of the last look."""
    reason: str = ""
    """Why it was rolled back, or what it waits for."""
    users_hit: int = Field(0, ge=0)
    """Users whose requests went to the candidate, as of the last look."""
    salt: str = ""
    """Another one for each rollout, so that not the same users are always the first."""
    since: AwareDatetime

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if list(self.shares) != sorted(set(self.shares)):
            raise ValueError(f"shares(={list(self.shares)}) must ascend")
        if self.candidate == self.stable:
            raise ValueError(f"candidate(={self.candidate!r}) must differ from stable")
        if self.candidate is None and (self.share > 0 or self.phase in UNDER_WAY):
            raise ValueError(f"candidate(=None) needs a track in phase {self.phase}")
        return self

    @property
    def planned_looks(self) -> int:
        """The most looks of the whole rollout before it has passed."""
        return self.rule.looks(max(1, len(self.shares))) if self.rule is not None else 0

    @property
    def passed(self) -> bool:
        return self.passed_at_look is not None


def track_of(conversation_key: str, state: RolloutState) -> str:
    """The track that a conversation goes to: the same one until the split changes.

    A conversation has a place in [0, 1), and the candidate takes all places below its share: who is in
    the canary at 1 % stays in it at 10 %.

    Args:    conversation_key: what all requests of a conversation share, for example its id, else the
             user. An empty one is a conversation too.
    """
    share, candidate = state.share, state.candidate
    if share <= 0.0 or candidate is None:
        return state.stable
    # Headers may hold lone surrogates, which plain UTF-8 refuses.
    text = (state.salt + conversation_key).encode("utf-8", "surrogatepass")
    place = int.from_bytes(blake2b(text, digest_size=8).digest())
    return candidate if place < share * 2.0**64 else state.stable


def start(
    state: RolloutState,
    track: str,
    now: datetime,
    *,
    shares: tuple[float, ...] = (0.01, 0.1, 0.5),
    rule: Analysis | None = None,
    auto_promote: bool = False,
) -> RolloutState:
    """Begin a canary: the first share of the conversations goes to the track.

    Raises:  InputError: a rollout is under way, or the track serves already.
    """
    _may_begin(state, track)
    if not shares:
        raise InputError("a canary has no share", remedy="Give one, for example 0.01.")
    return _begin(
        state,
        track,
        now,
        phase="canary",
        share=shares[0],
        shares=shares,
        rule=rule or Analysis(),
        auto_promote=auto_promote,
    )


def switch(
    state: RolloutState,
    track: str,
    now: datetime,
    *,
    rule: Analysis | None = None,
    auto_promote: bool = False,
) -> RolloutState:
    """Send all conversations to the track at once; the old one is kept for a rollback.

    Args:    rule: compares with what the old track showed before the switch; None looks at nothing.
    Raises:  InputError: a rollout is under way, or the track serves already.
    """
    if state.phase == "switched" and track == state.stable:
        return roll_back(state, f"switched back to {track}", now)
    _may_begin(state, track)
    return _begin(
        state,
        track,
        now,
        phase="switched",
        share=1.0,
        shares=(),
        rule=rule,
        auto_promote=auto_promote,
    )


def promote(state: RolloutState, now: datetime, *, force: bool = False) -> RolloutState:
    """Make the candidate the stable track.

    Raises:  InputError: nothing is under way, or it has not passed yet and `force` is False.
    """
    if state.phase not in UNDER_WAY or state.candidate is None:
        raise InputError(
            f"phase(={state.phase}) has nothing to promote", remedy="Begin with start or switch."
        )
    if state.rule is not None and not state.passed and not force:
        raise InputError(
            f"{state.candidate} has not passed yet (step {state.step + 1} of "
            f"{max(1, len(state.shares))}, {state.verdict or 'not looked at'})",
            remedy="Wait for it, or use --force.",
        )
    return _moved(
        state,
        now,
        phase="promoted",
        stable=state.candidate,
        candidate=state.stable,
        share=0.0,
        reason="",
    )


def roll_back(state: RolloutState, reason: str, now: datetime) -> RolloutState:
    """Send everything to the stable track, or after a promotion to the one before.

    Raises:  InputError: there is nothing to return from.
    """
    if state.phase == "promoted" and state.candidate is not None:
        tracks = {"stable": state.candidate, "candidate": state.stable}
    elif state.phase in UNDER_WAY:
        tracks = {}
    else:
        raise InputError(
            f"phase(={state.phase}) has nothing to roll back",
            remedy="See `serving rollout status`.",
        )
    return _moved(state, now, phase="rolled_back", share=0.0, reason=reason, **tracks)


def judged(
    state: RolloutState,
    verdict: Verdict,
    now: datetime,
    *,
    look: int,
    figures: str,
    users_hit: int = 0,
) -> RolloutState:
    """What a look leads to: on with it, the next share, waiting for `promote`, or back.

    Args:    look: its number in this step.
             figures: what was seen, for the reason.
    """
    assert state.rule is not None
    rule, watched_s = state.rule, (now - state.since).total_seconds()
    shown = {"looks": look, "verdict": verdict, "users_hit": users_hit}
    seen = state.model_copy(update=shown)
    if verdict == "worse":
        return roll_back(seen, f"worse: {figures}", now)
    if state.passed or not rule.over(verdict, watched_s):
        return _changed(seen)
    if verdict == "undecided":
        waited = f"undecided after {rule.max_windows} windows of {rule.window_s:g} s"
        return roll_back(seen, f"{waited}: {figures}", now)
    if state.step + 1 < len(state.shares):
        step = state.step + 1
        return _moved(seen, now, step=step, share=state.shares[step], verdict=None)
    return _changed(seen, passed_at_look=look, reason=f"passed, waits for promote: {figures}")


def held(state: RolloutState, after: RolloutState, *, look: int) -> RolloutState:
    """Stay although a look says to go back: the stable track could serve nobody."""
    reason = f"{after.reason}; {state.stable} has no healthy replica to return to"
    return _changed(state, looks=look, verdict=after.verdict, reason=reason)


def _may_begin(state: RolloutState, track: str) -> None:
    if state.phase in UNDER_WAY:
        raise InputError(
            f"{state.candidate} is being rolled out (phase {state.phase})",
            remedy="Use promote or rollback first.",
        )
    if track == state.stable:
        raise InputError(
            f"track(={track!r}) takes all traffic already", remedy="Name the other one."
        )


def _begin(state: RolloutState, track: str, now: datetime, **fields: Any) -> RolloutState:
    return _moved(
        state,
        now,
        rollout=state.rollout + 1,
        candidate=track,
        step=0,
        verdict=None,
        reason="",
        users_hit=0,
        salt=secrets.token_hex(8),
        **fields,
    )


def _moved(state: RolloutState, now: datetime, **fields: Any) -> RolloutState:
    """A state with another split, whose requests are counted anew."""
    anew = {"period": state.period + 1, "since": now, "looks": 0, "passed_at_look": None}
    return _changed(state, **anew, **fields)


def _changed(state: RolloutState, **fields: Any) -> RolloutState:
    # Not model_copy: what is written has to be validated.
    return RolloutState(**{**dict(state), "version": state.version + 1, **fields})
