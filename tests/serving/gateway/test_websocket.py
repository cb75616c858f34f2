from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from typing import Any, cast

import aiohttp
import pytest

from serving.gateway.keys import new_key
from tests.serving.gateway.upstream import gateway, upstream


@contextlib.asynccontextmanager
async def socket(port: int) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    url = f"http://127.0.0.1:{port}/v1/chat/ws"
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as made:
        yield made


async def test_a_stop_that_follows_at_once_is_answered() -> None:
    async with upstream() as vllm, gateway(vllm.url) as made, socket(made.port) as ws:
        assert (await ws.receive_json())["type"] == "ready"
        await asyncio.gather(  # in one piece of the network
            ws.send_json({"type": "message", "content": "one two"}), ws.send_json({"type": "stop"})
        )
        told = await ws.receive_json(timeout=5)
        assert told == {"type": "done", "finish_reason": "stopped"}
        await ws.send_json({"type": "message", "content": "one"})
        assert (await ws.receive_json(timeout=5))["content"] == "one"


async def test_a_key_counts_where_none_is_needed() -> None:
    key, digest = new_key()
    keys: dict[str, Any] = {"api_keys": {"acme": [digest]}, "anonymous": True}
    async with upstream() as vllm, gateway(vllm.url, **keys) as made:
        headers = {"Authorization": f"Bearer {key}"}
        url = f"http://127.0.0.1:{made.port}/v1/chat/completions"
        messages = [{"role": "user", "content": "over HTTP"}]
        body = {"messages": messages, "conversation": "c"}
        async with aiohttp.request("POST", url, json=body, headers=headers) as response:
            assert response.status == 200
        async with socket(made.port) as ws:
            await ws.receive_json()
            await ws.send_json({"type": "auth", "key": "sk-wrong"})
            assert (await ws.receive_json(timeout=5))["status"] == 401
            await ws.send_json({"type": "auth", "key": key})
            await ws.send_json({"type": "message", "content": "here", "conversation": "c"})
            while (await ws.receive_json(timeout=5))["type"] != "done":
                pass
    said = [message["content"] for message in vllm.chats[-1]["messages"]]
    assert said == ["over HTTP", "over HTTP", "here"]


async def test_a_client_that_vanishes_gives_its_answer_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with upstream(silent_after=1) as vllm, gateway(vllm.url) as made, socket(made.port) as ws:
        await ws.receive_json()
        await ws.send_json({"type": "message", "content": "one two"})
        assert (await ws.receive_json(timeout=5))["content"] == "one"
        cast(Any, ws)._response.connection.transport.abort()
        async with asyncio.timeout(5):
            while vllm.running:
                await asyncio.sleep(0.01)
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]
