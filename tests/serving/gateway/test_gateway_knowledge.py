"""Answers that cite documents; Milvus goes and comes, and the chat goes on."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.serving.gateway.processes import GatewayProcess, MilvusServer, gateway_process
from tests.serving.gateway.upstream import Upstream, upstream

pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed")

LEAVE = "# Leave\n\nEveryone has thirty days of paid vacation a year.\n"
TRAVEL = "# Travel\n\nTrains are booked second class; flights need a manager's consent.\n"
PATH = "/v1/chat/completions"


async def ask(gateway: GatewayProcess, text: str, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": text}]} | fields
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.url + PATH, json=body) as answer,
    ):
        assert answer.status == 200, await answer.text()
        found: dict[str, Any] = await answer.json()
        return found


def told(vllm: Upstream) -> str:
    """What the model was told before the last question."""
    first = vllm.chats[-1]["messages"][0]
    return str(first["content"]) if first["role"] == "system" else ""


async def until_up(gateway: GatewayProcess, value: float) -> None:
    async with asyncio.timeout(60):
        while True:
            up = 'gateway_dependency_up{name="milvus"}'
            if await asyncio.to_thread(gateway.metric, up) == value:
                return
            await ask(gateway, "How long is the holiday?")
            await asyncio.sleep(0.2)


@pytest.mark.slow
async def test_answers_cite_what_was_added_and_go_on_without_milvus(tmp_path: Path) -> None:
    for name, text in (("leave.md", LEAVE), ("travel.md", TRAVEL)):
        (tmp_path / name).write_text(text)
    milvus = MilvusServer(tmp_path / "milvus")
    milvus.start()
    try:
        command = [sys.executable, "-m", "serving.cli", "kb", "add", "--uri", milvus.uri]
        command += [str(tmp_path / "leave.md"), str(tmp_path / "travel.md")]
        await asyncio.to_thread(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
        base = json.dumps({"uri": milvus.uri, "timeout_s": 5, "top_k": 1})
        async with upstream(answer="Thirty [1].") as vllm:
            with gateway_process(tmp_path / "log", vllm.url, KNOWLEDGE=base) as gateway:
                await asyncio.to_thread(gateway.await_ready, 90)
                found = await ask(gateway, "How much holiday do employees get?")
                assert "thirty days" in told(vllm)
                assert "second class" not in told(vllm)
                assert [cited["title"] for cited in found["citations"]] == ["Leave"]
                assert "citations" not in await ask(gateway, "Hello?", knowledge=False)
                assert told(vllm) == ""
                milvus.stop()
                await until_up(gateway, 0)
                found = await ask(gateway, "How much holiday do employees get?")
                assert "citations" not in found
                milvus.start()
                await until_up(gateway, 1)
                await ask(gateway, "Which class may I book on a train?")
                assert "second class" in told(vllm)
            assert gateway.log.read_text().count('"dependency is down"') == 1
    finally:
        milvus.stop()
