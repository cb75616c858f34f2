"""The chat gateway with all of its features, beside a bare pass-through and nginx, on the same streams.

    python -m benchmarks.gateway

A server without a model answers every chat with a stream of 32 tokens. Before it stand, in turns:

- nobody: what server and client can do;
- a pass-through of Starlette, uvicorn and aiohttp's client, which does nothing else;
- nginx, where it is installed;
- the gateway with keys, rate limit, conversations and result cache in a Redis, and a log line for each
  request: every question is of a conversation of four turns, and asked at temperature 0.

Requests a second are of a closed loop of 32 clients; all servers share the cores with the client, so the
CPU time of a request, which other work disturbs less, is given beside them. Added TTFT is that of 32
streams that begin at random times and tick every 20 ms, less what there is without anybody between. The
last line is JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson
import psutil
import uvloop

from serving.gateway.keys import new_key
from workbench.measure.environment import Environment
from workbench.measure.process import free_port

TOKENS = 32
CLIENTS = 32
TARGET_SHARE = 0.8
TARGET_TTFT_MS = (5.0, 20.0)
_SECONDS = 3.0
_ROUNDS = 5
_GAP_S = 0.02
_MODEL = "chat"
_PATH = "/v1/chat/completions"


# -- servers, each in a process of its own ---------------------------------------------------------


async def upstream(port: int) -> None:
    """Streams as vLLM writes them; `gap_s` of the body paces them."""
    from aiohttp import web

    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": _MODEL}

    def event(value: dict[str, Any]) -> bytes:
        return b"data: " + orjson.dumps(head | value) + b"\n\n"

    def choice(delta: dict[str, Any], over: str | None = None) -> bytes:
        return event({"choices": [{"index": 0, "delta": delta, "finish_reason": over}]})

    first = choice({"role": "assistant", "content": ""})
    token, last = choice({"content": " word"}), choice({"content": " end"}, "stop")
    counts = {"prompt_tokens": 9, "completion_tokens": TOKENS, "total_tokens": 9 + TOKENS}
    usage = event({"choices": [], "usage": counts})

    async def answer(request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        gap_s = body.get("gap_s", 0.0)
        await response.write(first)
        for at in range(TOKENS):
            if gap_s:
                await asyncio.sleep(gap_s)
            await response.write(last if at == TOKENS - 1 else token)
        if (body.get("stream_options") or {}).get("include_usage"):
            await response.write(usage)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def well(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_post(_PATH, answer)
    app.router.add_post("/v1/completions", well)
    app.router.add_get("/health", well)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


def pass_through(port: int, url: str) -> None:
    """The peer: a chat is sent on, and its stream back."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    @contextlib.asynccontextmanager
    async def life(app: Starlette) -> Any:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as app.state.session:
            yield

    async def hand_on(request: Request) -> StreamingResponse:
        kind = {"Content-Type": "application/json"}
        session: aiohttp.ClientSession = request.app.state.session
        answer = await session.post(url + _PATH, data=await request.body(), headers=kind)

        async def pieces() -> Any:
            try:
                async for piece in answer.content.iter_any():
                    yield piece
            finally:
                answer.release()

        return StreamingResponse(pieces(), answer.status, media_type="text/event-stream")

    async def ready(request: Request) -> Response:
        return Response()

    routes = [Route(_PATH, hand_on, methods=["POST"]), Route("/readyz", ready)]
    app = Starlette(routes=routes, lifespan=life)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


NGINX = """
pid %(tmp)s/nginx.pid; error_log %(tmp)s/error.log; worker_processes 1;
events { worker_connections 4096; }
http {
  access_log off; keepalive_requests 1000000;
  client_body_temp_path %(tmp)s/a; proxy_temp_path %(tmp)s/b;
  fastcgi_temp_path %(tmp)s/c; uwsgi_temp_path %(tmp)s/d; scgi_temp_path %(tmp)s/e;
  upstream model { server %(host)s; keepalive 256; keepalive_requests 1000000; }
  server {
    listen 127.0.0.1:%(port)d;
    location = /readyz { return 200; }
    location / {
      proxy_pass http://model; proxy_http_version 1.1;
      proxy_set_header Connection ""; proxy_buffering off;
    }
  }
}
"""


class Servers:
    """Starts what is compared; `pids` are the processes whose CPU time counts."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self.key, self._kept = new_key()

    def upstream(self) -> str:
        port = free_port()
        self._start([sys.executable, "-m", "benchmarks.gateway", "upstream", str(port)])
        return self._ready(port, "/health")

    def pass_through(self, url: str) -> tuple[str, int]:
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.gateway", "pass-through", str(port), url]
        child = self._start(command)
        return self._ready(port), child

    def nginx(self, url: str) -> tuple[str, int] | None:
        program = shutil.which("nginx")
        if program is None:
            return None
        port, config = free_port(), self._folder / "nginx.conf"
        where = {"tmp": self._folder, "host": url.removeprefix("http://"), "port": port}
        config.write_text(NGINX % where)
        child = self._start([program, "-c", str(config), "-g", "daemon off;"])
        address = self._ready(port)
        return address, psutil.Process(child).children()[0].pid

    def gateway(self, url: str) -> tuple[str, int]:
        program = shutil.which("redis-server")
        if program is None:
            raise SystemExit("redis-server is not installed: apt-get install redis-server")
        redis, port = free_port(), free_port()
        self._start([program, "--port", str(redis), "--save", "", "--loglevel", "warning"])
        settings = {
            "MODEL": _MODEL,
            "TRACKS": json.dumps({"blue": [url]}),
            "SPEC": json.dumps({"result_cache": {}}),
            "PORT": str(port),
            "REDIS_URL": f"redis://127.0.0.1:{redis}/0",
            "API_KEYS": json.dumps({"bench": [self._kept]}),
            "LIMITS__REQUESTS_PER_MINUTE": "10000000",
        }
        environment = {f"GATEWAY_{name}": value for name, value in settings.items()}
        child = self._start([sys.executable, "-m", "serving.cli", "gateway"], environment)
        return self._ready(port), child

    def _start(self, command: list[str], environment: dict[str, str] | None = None) -> int:
        output = (self._folder / "output.log").open("ab")
        child = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[1],
        )
        self._stack.callback(child.wait)
        self._stack.callback(child.terminate)
        return child.pid

    def _ready(self, port: int, path: str = "/readyz") -> str:
        import urllib.request

        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(url + path):
                return url
            time.sleep(0.05)
        raise SystemExit(f"not ready: {(self._folder / 'output.log').read_text()[-2000:]}")


# -- what is measured -------------------------------------------------------------------------------


def question(client: int, number: int, **fields: Any) -> bytes:
    """Of a conversation of four turns; never asked before."""
    message = {"role": "user", "content": f"question {number} of client {client}"}
    body: dict[str, Any] = {"model": _MODEL, "messages": [message], "stream": True}
    own = {"temperature": 0, "conversation": f"{client}-{number // 4}", "user": f"u{client}"}
    return orjson.dumps(body | own | fields)


async def closed_loop(url: str, key: str, began: int) -> int:
    """How many chats 32 clients have answered, one after another each."""
    over_s = time.monotonic() + _SECONDS
    done = 0
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def user(client: int) -> None:
            nonlocal done
            number = began
            while time.monotonic() < over_s:
                number += 1
                async with session.post(url + _PATH, data=question(client, number)) as answer:
                    whole = await answer.read()
                if answer.status != 200 or not whole.endswith(b"[DONE]\n\n"):
                    raise SystemExit(f"{url} answered {answer.status}: {whole[:300]!r}")
                done += 1

        await asyncio.gather(*(user(client) for client in range(CLIENTS)))
    return done


async def paced(url: str, key: str, began: int) -> list[float]:
    """TTFT in seconds of streams of which 32 are under way, each ticking every 20 ms."""
    rng = np.random.default_rng(began)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    found: list[float] = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def user(client: int) -> None:
            await asyncio.sleep(rng.uniform(0, TOKENS * _GAP_S))
            for number in range(began, began + 6):
                body = question(client, number, gap_s=_GAP_S)
                sent_s = time.monotonic()
                async with session.post(url + _PATH, data=body) as answer:
                    first = await answer.content.readany()
                    while first.count(b"\n\n") < 2:  # the role comes at once
                        first += await answer.content.readany()
                    found.append(time.monotonic() - sent_s - _GAP_S)
                    await answer.read()
                await asyncio.sleep(rng.uniform(0, 4 * _GAP_S))

        await asyncio.gather(*(user(client) for client in range(CLIENTS)))
    return found


def cpu_s(pid: int) -> float:
    """Of a process so far."""
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def compare(stack: contextlib.ExitStack, folder: Path) -> dict[str, Any]:
    """Everything in turns, so that what else the machine does falls on all alike."""
    servers = Servers(folder, stack)
    url = servers.upstream()
    between: dict[str, tuple[str, int | None]] = {"nobody": (url, None)}
    between["pass-through"] = servers.pass_through(url)
    if (nginx := servers.nginx(url)) is not None:
        between["nginx"] = nginx
    between["gateway"] = servers.gateway(url)
    rates: dict[str, list[float]] = {name: [] for name in between}
    costs: dict[str, list[float]] = {name: [] for name in between}
    first: dict[str, list[float]] = {name: [] for name in between}
    for number in range(_ROUNDS + 1):
        for name, (address, pid) in between.items():
            before_s, cpu_before_s = time.monotonic(), cpu_s(pid) if pid else 0.0
            done = uvloop.run(closed_loop(address, servers.key, 100_000 * number))
            if number:  # the first round is for warming up
                rates[name].append(done / (time.monotonic() - before_s))
                costs[name].append(1e6 * (cpu_s(pid) - cpu_before_s) / done if pid else 0.0)
                began = 100_000 * number + 50_000
                first[name] += uvloop.run(paced(address, servers.key, began))
    rows = []
    bare_p50, bare_p99 = np.percentile(first["nobody"], [50, 99])
    for name in between:
        p50, p99 = np.percentile(first[name], [50, 99])
        rows.append(
            {
                "between": name,
                "requests_per_s": statistics.median(rates[name]),
                "low": min(rates[name]),
                "high": max(rates[name]),
                "cpu_us_per_request": statistics.median(costs[name]),
                "added_ttft_p50_ms": 1e3 * (p50 - bare_p50),
                "added_ttft_p99_ms": 1e3 * (p99 - bare_p99),
            }
        )
    shares = [g / p for g, p in zip(rates["gateway"], rates["pass-through"], strict=True)]
    by_cpu = [p / g for g, p in zip(costs["gateway"], costs["pass-through"], strict=True)]
    return {
        "rows": rows,
        "share_of_pass_through": statistics.median(shares),
        "share_low": min(shares),
        "share_high": max(shares),
        "share_by_cpu": statistics.median(by_cpu),
        "target_share": TARGET_SHARE,
        "target_ttft_ms": TARGET_TTFT_MS,
        "rounds": _ROUNDS,
    }


def main() -> None:
    """Print a table, and JSON last."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        found = compare(stack, Path(folder))
    for row in found["rows"]:
        print(
            f"{row['between']:<13} {row['requests_per_s']:>6.0f} requests/s"
            f" ({row['low']:.0f} to {row['high']:.0f})"
            f"  {row['cpu_us_per_request']:>5.0f} us of CPU"
            f"  added TTFT p50 {row['added_ttft_p50_ms']:>6.2f} ms,"
            f" p99 {row['added_ttft_p99_ms']:>6.2f} ms"
        )
    print(
        f"gateway over pass-through: {found['share_of_pass_through']:.2f}"
        f" ({found['share_low']:.2f} to {found['share_high']:.2f}), target {TARGET_SHARE};"
        f" by CPU time of a request {found['share_by_cpu']:.2f}"
    )
    print(json.dumps(found | {"hardware": Environment.capture().hardware}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["upstream", port]:
            uvloop.run(upstream(int(port)))
        case ["pass-through", port, url]:
            pass_through(int(port), url)
        case []:
            main()
        case _:
            sys.exit(__doc__)
