"""What happens around the gateway: Redis goes and comes, it is told to stop, clients are slow or many."""

from __future__ import annotations

import asyncio
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from serving.gateway.streams import delta, events
from tests.serving.gateway.processes import GatewayProcess, gateway_process
from tests.serving.gateway.upstream import upstream
from tests.serving.redis_server import redis_server
from workbench.measure.process import free_port

Json = dict[str, Any]
PATH = "/v1/chat/completions"


async def in_thread(function: Any, *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments)


def question(text: str, **fields: Any) -> bytes:
    return orjson.dumps({"messages": [{"role": "user", "content": text}], "stream": True} | fields)


async def stream(session: aiohttp.ClientSession, url: str, body: bytes) -> tuple[str, bool]:
    """(text, whether the stream came to its end)."""
    async with session.post(url + PATH, data=body) as answer:
        raw = await answer.read()
        assert answer.status == 200, raw
    return "".join(delta(event) for event in events([raw])), raw.endswith(b"data: [DONE]\n\n")


async def test_redis_goes_and_comes_and_the_chat_goes_on(tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        async with upstream() as vllm, aiohttp.ClientSession() as session:
            options = {"REDIS_URL": redis.url}
            with gateway_process(tmp_path / "log", vllm.url, **options) as gateway:
                await in_thread(gateway.await_ready)

                async def say(text: str) -> list[str]:
                    said = await stream(session, gateway.url, question(text, conversation="c"))
                    assert said == (text, True)
                    return [message["content"] for message in vllm.chats[-1]["messages"]]

                assert await say("one") == ["one"]
                assert await say("two") == ["one", "one", "two"]
                redis.kill()
                for text in ("three", "four", "five"):
                    assert await say(text) == [text]
                down = 'gateway_dependency_up{name="redis"}'
                assert await in_thread(gateway.metric, down) == 0
                assert await in_thread(gateway.metric, 'gateway_context_total{result="down"}') == 3
                redis.start()
                deadline_s = time.monotonic() + 20
                while await in_thread(gateway.metric, down) == 0:
                    await say("six")
                    assert time.monotonic() < deadline_s
                    await asyncio.sleep(0.1)
                before = await say("seven")
                assert await say("eight") == [*before, "seven", "eight"]
            logged = gateway.log.read_text()
            assert logged.count("dependency is down") == 1
            assert logged.count("dependency is up") == 1


async def test_no_stream_is_lost_when_it_is_told_to_stop_under_load(tmp_path: Path) -> None:
    text = "word " * 40
    async with upstream(pace_s=0.05) as vllm, aiohttp.ClientSession() as session:
        with gateway_process(tmp_path / "log", vllm.url) as gateway:
            await in_thread(gateway.await_ready)
            asked = [
                asyncio.create_task(stream(session, gateway.url, question(text))) for _ in range(64)
            ]
            while vllm.running < 64:
                await asyncio.sleep(0.01)
            gateway.child.send_signal(signal.SIGTERM)
            assert set(await asyncio.gather(*asked)) == {(text, True)}
            assert await in_thread(gateway.child.wait, 10) == 0
        assert vllm.given_up == 0


async def test_behind_nginx_a_gateway_can_be_restarted_and_nobody_sees_it(tmp_path: Path) -> None:
    program = shutil.which("nginx")
    if program is None:
        pytest.skip("nginx is not installed")
    with redis_server(tmp_path) as redis:
        async with upstream(pace_s=0.02) as vllm, aiohttp.ClientSession() as session:
            options = {"REDIS_URL": redis.url, "TIMEOUTS__DRAIN_DELAY_S": "0.5"}
            made = [GatewayProcess(tmp_path / f"log{n}", vllm.url, **options) for n in range(2)]
            port = free_port()
            config = tmp_path / "nginx.conf"
            servers = "\n".join(f"server 127.0.0.1:{one.port} max_fails=0;" for one in made)
            config.write_text(NGINX % {"tmp": tmp_path, "servers": servers, "port": port})
            nginx = subprocess.Popen([program, "-c", str(config), "-g", "daemon off;"])
            try:
                for one in made:
                    await in_thread(one.await_ready)
                url, over, texts = f"http://127.0.0.1:{port}", False, []

                async def user(name: int) -> None:
                    turn = 0
                    while not over:
                        turn += 1
                        body = question(f"turn {turn} of {name}", conversation=f"user-{name}")
                        texts.append(await stream(session, url, body))
                        assert len(vllm.chats) >= turn

                users = [asyncio.create_task(user(name)) for name in range(8)]
                await asyncio.sleep(1.0)
                for at in range(2):
                    made[at].child.send_signal(signal.SIGTERM)
                    assert await in_thread(made[at].child.wait, 20) == 0
                    again = GatewayProcess(
                        tmp_path / f"log{at}", vllm.url, port=made[at].port, **options
                    )
                    made[at] = again
                    await in_thread(again.await_ready)
                    await asyncio.sleep(0.5)
                over = True
                await asyncio.gather(*users)
                assert len(texts) > 50
                assert all(done for _, done in texts)
                # Whichever gateway answered, the conversation was whole.
                last = max(vllm.chats, key=lambda body: len(body["messages"]))["messages"]
                said = [m["content"] for m in last if m["role"] == "user"]
                assert [text.split()[1] for text in said] == [
                    str(1 + n) for n in range(len(said))
                ] or len(said) > 60
            finally:
                nginx.terminate()
                nginx.wait()
                for one in made:
                    one.stop()


NGINX = """
pid %(tmp)s/nginx.pid;
error_log %(tmp)s/nginx.log;
events { worker_connections 1024; }
http {
  access_log off;
  client_body_temp_path %(tmp)s/body;
  proxy_temp_path %(tmp)s/proxy;
  fastcgi_temp_path %(tmp)s/f; uwsgi_temp_path %(tmp)s/u; scgi_temp_path %(tmp)s/s;
  upstream gateways { %(servers)s }
  server {
    listen 127.0.0.1:%(port)d;
    location / {
      proxy_pass http://gateways;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_next_upstream error timeout http_503 non_idempotent;
    }
  }
}
"""


async def test_a_slow_client_holds_nobody_else_up(tmp_path: Path) -> None:
    text = "word " * 200_000
    async with upstream() as vllm:
        options = {"LIMITS__BODY_BYTES": "4000000"}
        with gateway_process(tmp_path / "log", vllm.url, **options) as gateway:
            await in_thread(gateway.await_ready)
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
            body = question(text)
            head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await reader.readexactly(500)  # and no more
            resident = "process_resident_memory_bytes"
            before = await in_thread(gateway.metric, resident)
            async with aiohttp.ClientSession() as session:
                for _ in range(20):
                    assert await stream(session, gateway.url, question("hi")) == ("hi", True)
            # Its answer waits at the model's server, not in the gateway's memory.
            assert await in_thread(gateway.metric, resident) - before < 30e6
            assert await in_thread(gateway.metric, "gateway_requests_in_flight") == 1
            writer.close()


async def test_ten_thousand_idle_websockets_are_no_burden(tmp_path: Path) -> None:
    count = 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + 1000:
        pytest.skip(f"only {hard} open files are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    async with upstream() as vllm:
        with gateway_process(tmp_path / "log", vllm.url) as gateway:
            await in_thread(gateway.await_ready)
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector) as session:
                sockets: list[aiohttp.ClientWebSocketResponse] = []
                for _ in range(count // 500):
                    sockets += await asyncio.gather(
                        *(session.ws_connect(gateway.url + "/v1/chat/ws") for _ in range(500))
                    )
                assert await in_thread(gateway.metric, "gateway_websockets ") == count
                resident = await in_thread(gateway.metric, "process_resident_memory_bytes")
                assert resident / count < 60_000
                await sockets[-1].receive_json()
                await sockets[-1].send_json({"type": "message", "content": "still there"})
                said = ""
                while (message := await sockets[-1].receive_json())["type"] == "token":
                    said += message["content"]
                assert (said, message["type"]) == ("still there", "done")
                await asyncio.gather(*(socket.close() for socket in sockets))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
