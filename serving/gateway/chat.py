"""One question from the client to the model and back, whatever it came by.

rate, conversation, cached answer   one round trip to the store
passages                            of the knowledge base
track                               of a rollout, else the stable one
replica                             least loaded; another one until the client has seen something
turn, answer                        kept before the client is told that it is over
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from serving.gateway import answers, context, streams
from serving.gateway.asks import PATHS, Ask
from serving.gateway.course import Course, Ledger, Traffic
from serving.gateway.errors import ApiError, broken
from serving.gateway.fleet import Fleet
from serving.gateway.forward import Forwarder, Upstream
from serving.gateway.logger import Logger
from serving.gateway.metrics import Metrics
from serving.gateway.settings import Settings
from serving.gateway.spare import Spare
from serving.gateway.store import Found, Kept, Store, Wanted

_SESSION_S = 1800.0
_JSON = "application/json"
_EVENTS = "text/event-stream; charset=utf-8"
Events = AsyncGenerator[tuple[bytes, bool], None]
"""Pieces of a stream, and whether it is known of one that it is the last."""


class Passages(Protocol):
    """A knowledge base."""

    @property
    def version(self) -> str: ...

    async def search(
        self, question: str, tenant: str, top_k: int, min_score: float
    ) -> tuple[Any, ...]: ...


@dataclass(slots=True)
class Reply:
    """An answer that has begun: whole, or as events."""

    status: int
    content_type: str
    headers: dict[str, str]
    whole: bytes | None = None
    events: Events | None = None


class Chat:
    """Answers questions."""

    def __init__(
        self,
        settings: Settings,
        *,
        fleet: Fleet,
        forwarder: Forwarder,
        store: Store,
        store_guard: Spare,
        traffic: Traffic,
        knowledge: Passages | None,
        knowledge_guard: Spare,
        metrics: Metrics,
        log: Logger,
    ) -> None:
        self._settings = settings
        self._fleet = fleet
        self._forwarder = forwarder
        self._store = store
        self._store_guard = store_guard
        self._traffic = traffic
        self._knowledge = knowledge
        self._knowledge_guard = knowledge_guard
        self._metrics = metrics
        self._ledger = Ledger(metrics, traffic, log)

    async def reply(self, ask: Ask) -> Reply:
        """Begin to answer.

        Raises:  ApiError: there is no answer; counted and logged already.
        """
        course = self._ledger.begin(ask)
        try:
            return await self._begin(course)
        except ApiError as error:
            self._ledger.end(course, error.status, error=error)
            raise
        except asyncio.CancelledError:
            self._ledger.end(course, 499)
            raise
        except Exception as error:
            self._ledger.end(course, 500, error=error)
            raise

    async def forget(self, tenant: str, conversation: str) -> None:
        """Drop a conversation."""
        key = f"{tenant}/{conversation}"
        await self._store_guard.ask(lambda: self._store.forget(key))

    # -- before the model ------------------------------------------------------------------------

    async def _begin(self, course: Course) -> Reply:
        ask = course.ask
        found = await self._look_up(course)
        self._check_rate(found)
        self._add_history(course, found)
        if found.answer is not None and not found.turns and ask.may_read_cache:
            return await self._from_cache(course, found.answer)
        await self._add_passages(course)
        course.track = self._track(ask)
        upstream = await self._forwarder.send(
            PATHS[ask.route],
            orjson.dumps(ask.body),
            {"Content-Type": _JSON, "traceparent": str(ask.trace), "X-Request-Id": ask.request_id},
            course.track,
            ask.prefix if self._settings.spec.balancing == "prefix_hash" else 0,
            stream=ask.stream,
        )
        course.first_s = time.monotonic() - ask.began_s
        course.replica = upstream.replica.url
        headers = {"X-Track": course.track}
        if ask.stream and upstream.status == 200:
            return Reply(200, _EVENTS, headers, events=self._stream(course, upstream))
        return await self._whole(course, upstream, headers)

    async def _look_up(self, course: Course) -> Found:
        ask = course.ask
        result_cache = self._settings.spec.result_cache
        if result_cache is not None:
            course.answer_key = answers.key(
                ask, self._settings.model, self._settings.revision, self._version(ask)
            )
        limit = self._settings.limits.requests_per_minute
        who = ask.user or ask.conversation
        wanted = Wanted(
            f"{ask.tenant}/{ask.conversation}" if ask.conversation else None,
            course.answer_key if ask.may_read_cache else None,
            ask.tenant if limit else None,
            f"{ask.tenant}/{who}" if who else None,
        )
        found: Found | None = Found()
        if any(wanted):
            found = await self._store_guard.ask(lambda: self._store.look_up(wanted))
        if found is None:
            if ask.conversation:
                self._metrics.context.labels("down").inc()
            return Found()
        if wanted.user:
            new = found.seen_s is None
            if new or time.time() - (found.seen_s or 0.0) > _SESSION_S:
                self._metrics.sessions.labels("new" if new else "returning").inc()
        if course.answer_key:
            course.cache = "hit" if found.answer and not found.turns else "miss"
        self._metrics.answers.labels(course.cache).inc()
        return found

    def _check_rate(self, found: Found) -> None:
        limit = self._settings.limits.requests_per_minute
        if limit is not None and found.used > limit:
            self._metrics.refused.labels("rate").inc()
            raise ApiError(
                429,
                f"More than {limit} requests in this minute.",
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                retry_after_s=60 - int(time.time()) % 60,
            )

    def _add_history(self, course: Course, found: Found) -> None:
        ask = course.ask
        if not ask.conversation:
            return
        budget = self._settings.context.budget_tokens
        ask.body["messages"], dropped = context.with_history(course.asked, found.turns, budget)
        self._metrics.context.labels("found" if found.turns else "new").inc()
        if dropped:
            self._metrics.context.labels("dropped").inc(dropped)
        if found.turns:  # what is said now is not all of the question
            course.answer_key = None

    def _version(self, ask: Ask) -> str:
        """Of the knowledge base, where this question is looked up there."""
        return self._knowledge.version if self._asks_knowledge(ask) and self._knowledge else ""

    def _asks_knowledge(self, ask: Ask) -> bool:
        base = self._settings.knowledge
        if base is None or self._knowledge is None or ask.route != "chat":
            return False
        return base.always if ask.knowledge is None else ask.knowledge

    async def _add_passages(self, course: Course) -> None:
        """Passages that answer the last message, as a system message before it."""
        ask, base, knowledge = course.ask, self._settings.knowledge, self._knowledge
        if base is None or knowledge is None or not self._asks_knowledge(ask):
            return
        question = course.asked[-1].get("content")
        if not isinstance(question, str) or not question.strip():
            return
        passages = await self._knowledge_guard.ask(
            lambda: knowledge.search(question, ask.tenant, base.top_k, base.min_score)
        )
        result = "failed" if passages is None else "found" if passages else "nothing"
        self._metrics.knowledge.labels(result).inc()
        if passages is None:  # with them the answer might have been another
            course.answer_key = None
        if passages:
            from serving.gateway.knowledge import citations, prompt

            messages = ask.messages
            told = {"role": "system", "content": prompt(passages)}
            ask.body["messages"] = _told(messages, told)
            course.citations = citations(passages)

    def _track(self, ask: Ask) -> str:
        """The track of the conversation; the stable one where that has nobody."""
        track = self._traffic.track_of(ask.owner)
        stable = self._traffic.stable
        if track != stable and not self._fleet.ready(track):
            self._traffic.record(
                track,
                ask.owner,
                failed=True,
                timed_out=False,
                ttft_s=None,
                tpot_s=None,
                e2e_s=time.monotonic() - ask.began_s,
            )
            return stable
        return track

    # -- after the model has begun ---------------------------------------------------------------

    async def _from_cache(self, course: Course, stored: bytes) -> Reply:
        ask = course.ask
        course.track = "cache"
        course.answer_key = None
        text, tokens = answers.text_of(stored)
        await self._keep(course, text, tokens, None)
        course.first_s = time.monotonic() - ask.began_s
        identity = f"cached-{ask.request_id}"
        model = self._settings.model
        headers = {"X-Cache": "hit"}
        if ask.stream:
            stream = answers.as_events(stored, ask.route, model, identity, usage=ask.wants_usage)
            return Reply(200, _EVENTS, headers, events=self._replay(course, b"".join(stream)))
        whole = answers.as_whole(stored, ask.route, model, identity)
        self._ledger.end(course, 200)
        return Reply(200, _JSON, headers, whole=whole)

    async def _replay(self, course: Course, events: bytes) -> Events:
        self._ledger.end(course, 200)
        yield events, True

    async def _stream(self, course: Course, upstream: Upstream) -> Events:
        """The events of a replica; an error in their midst is an event as well."""
        ask = course.ask
        watch = streams.Watch(
            keep_usage=ask.wants_usage,
            remember=ask.conversation is not None or course.answer_key is not None,
        )
        status, error = 499, None  # as long as it is not over, its client may give it up
        failed = False
        last = b""
        try:
            piece = upstream.first
            if course.citations:
                piece = streams.with_citations(piece, course.citations)
            while piece:
                piece = watch.see(piece)
                if watch.done:
                    await self._keep_stream(course, watch)
                    if upstream.over:
                        last = piece
                        break
                if piece:
                    yield piece, False
                piece = await upstream.more()
            failed = watch.failed or not watch.done
            status = 502 if failed else 200
            if failed and not watch.failed:
                raise broken("The model's server broke off.")
        except ApiError as broke:
            status, error, failed = broke.status, broke, True
            yield b"data: " + broke.body + b"\n\n", False
        finally:
            self._forwarder.release(upstream, failed=failed)
            course.usage = watch.usage
            self._ledger.end(course, status, error=error)
        if last:
            yield last, True

    async def _whole(self, course: Course, upstream: Upstream, headers: dict[str, str]) -> Reply:
        self._forwarder.release(upstream, failed=False)
        body, ask = upstream.first, course.ask
        if upstream.status == 200 and (course.citations or ask.conversation or course.answer_key):
            found = orjson.loads(body)
            course.usage = found.get("usage") or {}
            choice = found["choices"][0]
            text = choice.get("text") or (choice.get("message") or {}).get("content") or ""
            await self._keep(
                course, text, course.usage.get("completion_tokens"), choice.get("finish_reason")
            )
            if course.citations:
                body = orjson.dumps(found | {"citations": course.citations})
        self._ledger.end(course, upstream.status)
        return Reply(upstream.status, upstream.content_type, headers, whole=body)

    async def _keep_stream(self, course: Course, watch: streams.Watch) -> None:
        if watch.remember and not watch.failed:
            said = watch.said()
            course.usage = watch.usage
            tokens = watch.usage.get("completion_tokens")
            await self._keep(course, said.text, tokens, said.finish_reason)

    async def _keep(
        self, course: Course, text: str, tokens: int | None, finish_reason: str | None
    ) -> None:
        """Remember the turn and the answer, where they are to be."""
        ask, settings = course.ask, self._settings
        fills = course.answer_key is not None and ask.may_fill_cache
        fills = fills and finish_reason in ("stop", "length")
        if not fills and not ask.conversation:
            return
        cache = settings.spec.result_cache
        kept = Kept(
            f"{ask.tenant}/{ask.conversation}" if ask.conversation else None,
            context.turn(course.asked, text, tokens) if ask.conversation else b"",
            settings.context.max_turns,
            settings.context.ttl_s,
            course.answer_key if fills else None,
            answers.entry(text, finish_reason or "stop", course.usage, course.citations)
            if fills
            else b"",
            cache.ttl_s if cache else 0.0,
        )
        await self._store_guard.ask(lambda: self._store.keep(kept))


def _told(messages: list[dict[str, Any]], told: dict[str, Any]) -> list[dict[str, Any]]:
    """The passages go into the system message, since chat templates take but one."""
    if messages and messages[0]["role"] in ("system", "developer"):
        first = messages[0]
        both = {**first, "content": f"{first.get('content') or ''}\n\n{told['content']}"}
        return [both, *messages[1:]]
    return [told, *messages]
