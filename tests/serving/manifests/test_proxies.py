"""nginx and Envoy with the exported configuration: taken, and streams and WebSockets pass unhindered."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from serving.manifests import render
from tests.serving.plans import plan

GAP_S = 0.15
PIECES = 5


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def nginx() -> str:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if found is None:
        pytest.skip("nginx is not installed")
    return found


def envoy() -> str:
    found = shutil.which("envoy") or shutil.which("envoy", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip("envoy is not installed")
    return found


def placed(name: str, folder: Path, port: int, backends: tuple[int, int]) -> Path:
    """The exported file with the ports that are free here."""
    text = render(plan())[f"proxy/{name}"]
    changes = {
        "listen 8000;": f"listen 127.0.0.1:{port};",
        "/tmp/nginx-gateway.pid": str(folder / "nginx.pid"),
        "port_value: 8000": f"port_value: {port}",
        "port_value: 9901": f"port_value: {free_port()}",
        "127.0.0.1:8080": f"127.0.0.1:{backends[0]}",
        "127.0.0.1:8081": f"127.0.0.1:{backends[1]}",
        "port_value: 8080": f"port_value: {backends[0]}",
        "port_value: 8081": f"port_value: {backends[1]}",
    }
    for old, new in changes.items():
        text = text.replace(old, new)
    path = folder / name
    path.write_text(text)
    return path


def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    path = placed("nginx.conf", tmp_path, free_port(), (8080, 8081))
    done = subprocess.run([nginx(), "-t", "-c", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path.write_text(path.read_text().replace("proxy_buffering off", "proxy_buffering never"))
    assert subprocess.run([nginx(), "-t", "-c", str(path)], capture_output=True).returncode != 0


def test_envoy_takes_its_configuration(tmp_path: Path) -> None:
    path = placed("envoy.yaml", tmp_path, free_port(), (8080, 8081))
    command = [envoy(), "--mode", "validate", "-c", str(path), "--log-level", "error"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path.write_text(path.read_text().replace("LEAST_REQUEST", "LEAST_WORK"))
    assert subprocess.run(command, capture_output=True).returncode != 0


@contextmanager
def proxy(kind: str, folder: Path, port: int, backends: tuple[int, int]) -> Iterator[None]:
    if kind == "nginx":
        path = placed("nginx.conf", folder, port, backends)
        command = [nginx(), "-c", str(path), "-g", "daemon off;"]
    else:
        path = placed("envoy.yaml", folder, port, backends)
        command = [envoy(), "-c", str(path), "--log-level", "error", "--concurrency", "1"]
        command += ["--base-id", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


@asynccontextmanager
async def backend(port: int) -> AsyncIterator[None]:
    """Streams pieces with gaps, echoes over a WebSocket, and says who asked."""

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for i in range(PIECES):
            await response.write(f"data: {i}\n\n".encode())
            await asyncio.sleep(GAP_S)
        return response

    async def chat(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    async def who(request: web.Request) -> web.Response:
        return web.Response(text=request.headers.get("X-Forwarded-For", ""))

    app = web.Application()
    app.router.add_post("/v1/chat/completions", stream)
    app.router.add_get("/v1/chat/ws", chat)
    app.router.add_get("/readyz", who)
    app.router.add_get("/metrics", who)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield
    finally:
        await runner.cleanup()


async def answered(session: aiohttp.ClientSession, url: str) -> None:
    for _ in range(150):
        try:
            async with session.get(url) as response:
                if response.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.1)
    raise AssertionError(f"{url} does not answer")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nginx", "envoy"])
async def test_streams_and_websockets_pass(kind: str, tmp_path: Path) -> None:
    (nginx if kind == "nginx" else envoy)()
    port, one, two = free_port(), free_port(), free_port()
    at = f"http://127.0.0.1:{port}"
    # The second process is down: what is sent goes to the first.
    async with backend(one), aiohttp.ClientSession() as session:
        with proxy(kind, tmp_path, port, (one, two)):
            await answered(session, f"{at}/readyz")
            came_s = []
            async with session.post(f"{at}/v1/chat/completions", json={}) as response:
                assert response.status == 200
                async for line in response.content:
                    if line.startswith(b"data:"):
                        came_s.append(time.monotonic())
            # Were they buffered, all would come at once.
            assert len(came_s) == PIECES
            assert came_s[-1] - came_s[0] > (PIECES - 2) * GAP_S
            async with session.ws_connect(f"{at}/v1/chat/ws") as chat:
                await chat.send_str("hello")
                assert (await chat.receive(timeout=10)).data == "hello"
            # Clients cannot say where they come from, and see no metrics.
            forged = {"X-Forwarded-For": "203.0.113.7"}
            async with session.get(f"{at}/readyz", headers=forged) as response:
                assert await response.text() == "127.0.0.1"
            async with session.get(f"{at}/metrics") as response:
                assert response.status == 404
