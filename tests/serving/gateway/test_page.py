from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest
import pytest_asyncio

from serving.gateway.keys import new_key
from tests.serving.gateway.upstream import Upstream, gateway, upstream

playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
    pytest.mark.asyncio(loop_scope="module"),
]

NOBODY = "http://127.0.0.1:9"
PHONE = {"viewport": {"width": 375, "height": 667}, "is_mobile": True, "has_touch": True}
ANSWER = ".answer:last-of-type .text"


class Browser:
    """A page, and what it complained of."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._heard)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    async def open(self, port: int) -> None:
        await self.page.goto(f"http://127.0.0.1:{port}/")

    async def ask(self, question: str) -> None:
        await self.until("ready")
        await self.page.fill("#question", question)
        await self.page.press("#question", "Enter")

    async def until(self, state: str) -> None:
        await self.page.wait_for_selector(f"#state.{state}")

    async def answered(self, turns: int = 1) -> str:
        """The last of so many answers, once it is over."""
        await self.page.wait_for_selector(f":nth-match(.answer[aria-busy=false], {turns})")
        return await self.text(ANSWER)

    async def text(self, selector: str) -> str:
        return str(await self.page.inner_text(selector))

    async def shows(self, selector: str, text: str) -> None:
        await playwright.expect(self.page.locator(selector)).to_have_text(text)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Any]:
    async with playwright.async_playwright() as started:
        made = await started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        await made.close()


@contextlib.asynccontextmanager
async def browser(chromium: Any, **context: Any) -> AsyncIterator[Browser]:
    async with await chromium.new_context(**context) as made:
        made.set_default_timeout(10_000)
        yield Browser(await made.new_page())


@pytest_asyncio.fixture(loop_scope="module")
async def vllm() -> AsyncIterator[Upstream]:
    async with upstream() as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def seen(chromium: Any) -> AsyncIterator[Browser]:
    async with browser(chromium) as made:
        yield made


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.01)


async def test_tokens_are_shown_before_the_answer_is_over(vllm: Upstream, seen: Browser) -> None:
    vllm.silent_after = 3
    async with gateway(vllm.url) as made:
        await seen.open(made.port)
        await seen.ask("one two three four")
        await seen.shows(ANSWER, "one two three")
        await seen.until("answering")
        assert await seen.page.is_hidden(".facts")


async def test_a_conversation_goes_on_and_survives_a_reload(vllm: Upstream, seen: Browser) -> None:
    vllm.answer = lambda body: f"Answer {len(body['messages'])} is this."
    vllm.pace_s = 0.03
    async with gateway(vllm.url) as made:
        await seen.open(made.port)
        await seen.ask("First?")
        assert await seen.answered() == "Answer 1 is this."
        assert await seen.page.locator(".remark, .problem, .sources").count() == 0
        facts = await seen.text(".facts")
        assert re.fullmatch(r"first token [\d.]+ s · [\d.]+ tokens/s", facts)
        await seen.ask("Second?")
        assert await seen.answered(2) == "Answer 3 is this."
        await seen.page.reload()
        assert await seen.answered(2) == "Answer 3 is this."
        await seen.ask("Third?")
        assert await seen.answered(3) == "Answer 5 is this."
        assert [message["content"] for message in vllm.chats[-1]["messages"]] == [
            "First?",
            "Answer 1 is this.",
            "Second?",
            "Answer 3 is this.",
            "Third?",
        ]
        await seen.page.click("text=New conversation")
        await seen.ask("Another?")
        assert await seen.answered() == "Answer 1 is this."
    assert await seen.page.locator("article").count() == 2
    assert not seen.complaints


async def test_enter_sends_and_shift_enter_does_not(vllm: Upstream, seen: Browser) -> None:
    async with gateway(vllm.url) as made:
        await seen.open(made.port)
        await seen.until("ready")
        await seen.page.type("#question", "a")
        await seen.page.press("#question", "Shift+Enter")
        await seen.page.type("#question", "b")
        assert not vllm.chats
        await seen.page.press("#question", "Enter")
        await seen.answered()
        assert vllm.chats[0]["messages"][-1]["content"] == "a\nb"


async def test_stop_ends_the_answer_at_the_replica_too(vllm: Upstream, seen: Browser) -> None:
    vllm.silent_after = 2
    async with gateway(vllm.url) as made:
        await seen.open(made.port)
        await seen.ask("one two three")
        await seen.shows(ANSWER, "one two")
        assert vllm.running == 1
        await seen.page.click("text=Stop")
        assert await seen.answered() == "one two"
        assert (await seen.text(".remark")).startswith("Stopped.")
        await seen.until("ready")
        await eventually(lambda: vllm.running == 0)
        vllm.silent_after = None
        await seen.ask("and now")
        assert await seen.answered(2) == "and now"
    assert not seen.complaints


async def test_a_key_is_asked_for_only_where_one_is_needed(vllm: Upstream, seen: Browser) -> None:
    key, digest = new_key()
    async with gateway(vllm.url, api_keys={"acme": [digest]}) as made:
        await seen.open(made.port)
        await seen.until("locked")
        assert "was not accepted" not in await seen.text("#lock-why")
        await seen.page.fill("#key", "sk-wrong")
        await seen.page.press("#key", "Enter")
        await seen.page.wait_for_selector("#lock-why:has-text('was not accepted')")
        await seen.page.fill("#key", key)
        await seen.page.click("text=Use key")
        await seen.ask("Do you know me?")
        assert await seen.answered() == "Do you know me?"
        assert await seen.page.evaluate("sessionStorage.getItem('chat.key')") == key
        assert await seen.page.evaluate("localStorage.length") == 0
        assert not await seen.page.context.cookies()
        await seen.page.reload()
        await seen.until("ready")
    assert not seen.complaints


async def test_it_connects_again_when_the_gateway_is_back(vllm: Upstream, seen: Browser) -> None:
    conversation = "sessionStorage.getItem('chat.conversation')"
    async with gateway(vllm.url) as made:
        port = made.port
        await seen.open(port)
        await seen.ask("Before")
        assert await seen.answered() == "Before"
        before = await seen.page.evaluate(conversation)
    await seen.until("disconnected")
    assert await seen.page.is_visible("text=No connection to the server.")
    assert await seen.page.is_disabled("#send")
    async with gateway(vllm.url, port=port):
        await seen.ask("After")
        assert await seen.answered(2) == "After"
        assert await seen.page.evaluate(conversation) == before
        assert await seen.page.is_hidden("#notice")


async def test_an_answer_that_breaks_off_can_be_asked_for_again(
    vllm: Upstream, seen: Browser
) -> None:
    vllm.breaks_after = 2
    async with gateway(vllm.url) as made:
        await seen.open(made.port)
        await seen.ask("one two three")
        assert await seen.answered() == "one two"
        assert "Ask again" in await seen.text(".problem")
        vllm.breaks_after = None
        await seen.page.click("button:text('Ask again')")
        await seen.shows(ANSWER, "one two three")


async def test_what_was_said_is_text_and_never_executed(vllm: Upstream, seen: Browser) -> None:
    attack = "<img src=x onerror='window.hit=1'><script>window.hit=1</script>"
    vllm.answer = f"{attack}\n\n```html\n{attack}\n```\n\n**{attack}** `{attack}`"
    async with gateway(vllm.url) as made:
        await seen.open(made.port)
        await seen.ask(attack)
        assert (await seen.answered()).count(attack) == 4
        assert (await seen.text("article.user")).endswith(attack)
        assert await seen.text("pre") == attack
        await seen.page.reload()
        await seen.answered()
        assert await seen.page.evaluate("window.hit") is None
        assert await seen.page.locator("article :is(img, script)").count() == 0
    assert not seen.complaints


async def test_citations_are_listed_and_link_only_to_the_web(seen: Browser) -> None:
    cited = [
        {"title": "Manual", "url": "https://example.org/manual"},
        {"title": "Trap", "url": "javascript:window.hit=1"},
        {"source": "notes.md"},
    ]

    def answers(socket: Any) -> None:
        def take(text: str) -> None:
            if '"message"' in text:
                socket.send('{"type": "token", "content": "So it is."}')
                socket.send(orjson.dumps({"type": "done", "citations": cited}).decode())
            else:
                socket.send('{"type": "ready", "conversation": "ws-1"}')

        socket.on_message(take)

    await seen.page.route_web_socket("**/v1/chat/ws", answers)
    async with gateway(NOBODY, wait=False) as made:
        await seen.open(made.port)
        await seen.ask("Why?")
        await seen.answered()
    assert await seen.page.locator(".sources li").all_inner_texts() == [
        "Manual",
        "Trap",
        "notes.md",
    ]
    links = seen.page.locator(".sources a")
    assert await links.evaluate_all("found => found.map(a => a.href)") == [cited[0]["url"]]


async def test_it_fits_a_phone_with_its_keyboard_open(vllm: Upstream, chromium: Any) -> None:
    vllm.answer = f"{'long' * 40}\n\n```\n{'code ' * 60}\n```"
    async with browser(chromium, **PHONE) as seen, gateway(vllm.url) as made:
        await seen.open(made.port)
        await seen.ask("word" * 40)
        await seen.answered()
        page = seen.page
        assert await page.evaluate("document.documentElement.scrollWidth") == 375
        assert await page.evaluate("document.getElementById('talk').scrollWidth") == 375
        boxes = [
            await button.bounding_box() for button in await page.locator("button:visible").all()
        ]
        assert len(boxes) == 4
        assert min(side for box in boxes for side in (box["width"], box["height"])) >= 44
        await page.set_viewport_size({"width": 375, "height": 320})  # as interactive-widget says
        fits = """() => {
            const {top, bottom} = document.getElementById("ask").getBoundingClientRect();
            return 0 < top && bottom <= 320;
        }"""
        await page.wait_for_function(fits)  # a loaded machine lays out later
        assert await page.evaluate("parseFloat(getComputedStyle(question).fontSize)") >= 16


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_stands_out_from_its_ground(chromium: Any, scheme: str) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1."""
    ratio = """([ink, ground]) => {
        const luminance = name => {
            const probe = document.body.appendChild(document.createElement("i"));
            probe.style.color = `var(--${name})`;
            const rgb = getComputedStyle(probe).color.match(/\\d+/g).slice(0, 3).map(part => {
                const c = part / 255;
                return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
            });
            probe.remove();
            return 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2] + 0.05;
        };
        const [a, b] = [luminance(ink), luminance(ground)];
        return Math.max(a, b) / Math.min(a, b);
    }"""
    pairs = [("ink", "page"), ("ink", "mine"), ("ink", "code"), ("ink", "raised")]
    pairs += [("soft", "page"), ("soft", "raised"), ("soft", "code"), ("bad", "page")]
    pairs += [("on-accent", "accent"), ("accent", "page")]
    async with browser(chromium, color_scheme=scheme) as seen, gateway(NOBODY, wait=False) as made:
        await seen.open(made.port)
        ground = await seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(251, 251, 250)") == (scheme == "light")
        for pair in pairs:
            assert await seen.page.evaluate(ratio, list(pair)) >= 4.5, pair
