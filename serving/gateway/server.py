"""A gateway from its start to its end.

On SIGTERM: not ready any more, but taking requests for `drain_delay_s`; then no new connections, and
streams and WebSockets have `drain_s` to finish; then it is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import aiohttp
import uvloop
from aiohttp import web

from serving.errors import InputError
from serving.gateway.api import Api
from serving.gateway.chat import Chat, Passages
from serving.gateway.course import Traffic
from serving.gateway.fleet import Fleet, Replica
from serving.gateway.forward import Forwarder
from serving.gateway.keys import Keys
from serving.gateway.logger import Logger, configure, logger
from serving.gateway.metrics import Metrics
from serving.gateway.rollout import Rollouts, RolloutState, open_store
from serving.gateway.settings import Settings
from serving.gateway.spare import Spare
from serving.gateway.store import MemoryStore, RedisStore, Store

_GC_OBJECTS = 10_000
"""Made and not yet freed, after which young garbage is looked for."""


@dataclass
class Gateway:
    """A gateway that answers."""

    api: Api
    fleet: Fleet
    metrics: Metrics
    port: int
    site: web.BaseSite
    runner: web.AppRunner


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Gateway]:
    """A gateway in this event loop; leaving drains it.

    Raises:  InputError: an address that cannot be listened at.
    """
    metrics = Metrics()
    async with contextlib.AsyncExitStack() as stack:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=75)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
        )
        fleet = Fleet(settings, session, _counted(metrics, lambda: fleet))
        forwarder = Forwarder(fleet, session, settings.timeouts, metrics.retries)
        store = _store(settings)
        stack.push_async_callback(store.close)
        traffic = await _traffic(settings, fleet, metrics, stack)
        chat = Chat(
            settings,
            fleet=fleet,
            forwarder=forwarder,
            store=store,
            store_guard=Spare("redis", metrics),
            traffic=traffic,
            knowledge=await _knowledge(settings, stack),
            knowledge_guard=Spare(
                "milvus",
                metrics,
                timeout_s=settings.knowledge.timeout_s if settings.knowledge else 1.0,
            ),
            metrics=metrics,
            log=Logger(prompts=settings.log_prompts),
        )
        api = Api(settings, chat, fleet, Keys.of(settings), metrics, lambda: traffic.stable)
        runner = web.AppRunner(
            api.application(),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=settings.timeouts.drain_s,
            keepalive_timeout=75,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, settings.host, settings.port, backlog=4096)
        try:
            await site.start()
        except OSError as error:
            raise InputError(
                f"cannot listen at {settings.host}:{settings.port} ({error.strerror})",
                remedy="Choose another --port.",
            ) from error
        await fleet.start()
        stack.push_async_callback(fleet.stop)
        port = runner.addresses[0][1]
        logger().info("listening", host=settings.host, port=port)
        gateway = Gateway(api, fleet, metrics, port, site, runner)
        try:
            yield gateway
        finally:
            await _drain(gateway, settings)


async def _drain(gateway: Gateway, settings: Settings) -> None:
    """Take no more, and let what has begun end."""
    gateway.api.draining = True
    logger().info("draining", delay_s=settings.timeouts.drain_delay_s)
    await asyncio.sleep(settings.timeouts.drain_delay_s)
    await gateway.site.stop()
    await gateway.api.sockets.close(settings.timeouts.drain_s)


def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT, then drain.

    Raises:  InputError: settings that cannot work here.
    """
    configure(settings.log_level, settings.log_prompts, key=settings.log_key.encode())
    # A socket is a file, and the usual 1,024 are soon in use.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(_until_stopped(settings))


async def _until_stopped(settings: Settings) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopped.set)
    async with running(settings):
        # What was loaded stays; a full collection over it would hold all streams up.
        gc.collect()
        gc.freeze()
        # Nearly everything is freed by its references; at the default of 700 objects looking for the
        # rest takes a twentieth of the time of a chat.
        gc.set_threshold(_GC_OBJECTS)
        await stopped.wait()
    logger().info("stopped")


def _store(settings: Settings) -> Store:
    if settings.redis_url is None:
        cache = settings.spec.result_cache
        return MemoryStore(
            answers=cache.size if cache else 1,
            answer_ttl_s=cache.ttl_s if cache else 1.0,
            conversation_ttl_s=settings.context.ttl_s,
        )
    return RedisStore(settings.redis_url, settings.timeouts.redis_s)


def _counted(metrics: Metrics, fleet: Callable[[], Fleet]) -> Callable[[Replica], None]:
    def change(replica: Replica) -> None:
        of_track = fleet().replicas[replica.track]
        metrics.replicas.labels(replica.track).set(sum(r.state == "up" for r in of_track))

    return change


class _Steady:
    """No rollout: all traffic goes to the stable track."""

    def __init__(self, stable: str) -> None:
        self.stable = stable

    def track_of(self, owner: str) -> str:
        return self.stable

    def record(self, track: str, owner: str, **what: object) -> None:
        pass


async def _traffic(
    settings: Settings, fleet: Fleet, metrics: Metrics, stack: contextlib.AsyncExitStack
) -> Traffic:
    """Rollouts, where there is a place to remember them."""
    if settings.redis_url is None and settings.state_file is None:
        return _Steady(settings.first_stable)

    def changed(before: RolloutState | None, after: RolloutState) -> None:
        shares = {after.stable: 1.0 - after.share}
        if after.candidate is not None:
            shares[after.candidate] = after.share
        for track in settings.tracks:
            metrics.share.labels(track).set(shares.get(track, 0.0))
        if before is not None and after.phase == "rolled_back":
            metrics.rollbacks.inc()

    rollouts = Rollouts(
        open_store(settings.redis_url, settings.state_file),
        stable=settings.first_stable,
        healthy=lambda: {track: fleet.ready(track) for track in settings.tracks},
        on_change=changed,
    )
    await rollouts.start()
    stack.push_async_callback(rollouts.stop)
    return rollouts


async def _knowledge(settings: Settings, stack: contextlib.AsyncExitStack) -> Passages | None:
    """The knowledge base; where it is not there yet, it is connected to once it is."""
    base = settings.knowledge
    if base is None:
        return None
    from serving.gateway.knowledge import Knowledge, KnowledgeError, choose_embedder

    embedder = choose_embedder(base.embeddings, base.embedding_model, api_key=base.embedding_key)
    knowledge = Knowledge(base.uri, embedder, time_limit_s=base.timeout_s)
    stack.push_async_callback(knowledge.close)
    try:
        await knowledge.start()
    except KnowledgeError as error:
        logger().warning("knowledge base is not there yet", reason=str(error))
    return knowledge
