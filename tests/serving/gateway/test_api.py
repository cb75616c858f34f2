"""The API does what its description says, whatever is sent."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from serving.gateway.keys import new_key
from tests.serving.gateway.processes import GatewayProcess, gateway_process
from tests.serving.gateway.upstream import MODEL, upstream

KEY, KEPT = new_key()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One with a key, before a server in a thread of its own."""
    started, over = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    url = ""

    async def serve() -> None:
        nonlocal url
        async with upstream() as vllm:
            url = vllm.url
            started.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    started.wait(10)
    log = tmp_path_factory.mktemp("gateway") / "log"
    try:
        with gateway_process(log, url, API_KEYS=json.dumps({"shop": [KEPT]})) as made:
            made.await_ready()
            yield made
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()


OPERATIONS = [
    *("POST /v1/chat/completions", "POST /v1/completions", "GET /v1/models", "GET /metrics"),
    *("GET /v1/models/{model}", "DELETE /v1/conversations/{id}", "GET /healthz", "GET /readyz"),
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_whatever_is_sent_the_answer_is_one_that_was_described(
    gateway: GatewayProcess, operation: str
) -> None:
    schema = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    method, path = operation.split()
    found = schema[path][method]

    @given(case=found.as_strategy())
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    def holds(case: schemathesis.Case) -> None:
        case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"})

    holds()
    assert gateway.child.poll() is None


def test_every_operation_is_tried(gateway: GatewayProcess) -> None:
    schema = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    described = {f"{op.ok().method.upper()} {op.ok().path}" for op in schema.get_all_operations()}
    assert described == set(OPERATIONS)


def test_the_official_client_works_unchanged(gateway: GatewayProcess) -> None:
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY)
    assert [model.id for model in client.models.list()] == [MODEL]
    chat = client.chat.completions
    whole = chat.create(model=MODEL, messages=[{"role": "user", "content": "one two"}])
    assert whole.choices[0].message.content == "one two"
    pieces = chat.create(
        model=MODEL, messages=[{"role": "user", "content": "one two"}], stream=True
    )
    assert [piece.choices[0].delta.content for piece in pieces] == ["", "one", " two"]
    remembered = {"conversation": "with-openai"}
    for text in ("first", "second"):
        chat.create(
            model=MODEL, messages=[{"role": "user", "content": text}], extra_body=remembered
        )
    assert client.completions.create(model=MODEL, prompt="go on").choices[0].text == "go on"
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        client.with_options(api_key="sk-wrong").models.list()
    with pytest.raises(openai.BadRequestError, match="messages"):
        chat.create(model=MODEL, messages=[])


def test_the_log_is_where_it_was_told(gateway: GatewayProcess) -> None:
    assert Path(gateway.log).read_text().count("listening") == 1
