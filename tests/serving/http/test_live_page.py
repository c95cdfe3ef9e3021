"""The live page in a real browser: what it shows, by mouse, by keyboard, and on a phone."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from foreword.engine import SamplingParams
from foreword.serving.http import Keyring, ServerConfig

playwright_api = pytest.importorskip("playwright.async_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")

ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TRUNK = "The captain told his daughters of the ships, and"
KEY = "operator-key-0123456789"

Page = Any
Scenario = Callable[[Page], Awaitable[None]]


class Browser:
    """One Chromium in a thread with an event loop of its own, so that tests can run theirs."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="browser")
        self._thread.start()
        self._wait(self._start())

    def _wait(self, task: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(task, self._loop).result(timeout=60)

    async def _start(self) -> None:
        self._playwright = await playwright_api.async_playwright().start()
        self._chromium = await self._playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)

    async def _stop(self) -> None:
        await self._chromium.close()
        await self._playwright.stop()

    def close(self) -> None:
        self._wait(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def visit(self, url: str, scenario: Scenario, *, forgiven: str = "$^", **context: Any) -> None:
        """Open the page and do what `scenario` says.

        The test fails if the browser's console shows an error or a warning (one about the content
        security policy among them) that `forgiven` does not match.
        """
        self._wait(self._visit(url, scenario, forgiven, context))

    async def _visit(self, url: str, scenario: Scenario, forgiven: str, context: Any) -> None:
        complaints: list[str] = []

        def listen(message: Any) -> None:
            if message.type in ("error", "warning") and not re.search(forgiven, message.text):
                complaints.append(message.text)

        settings = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"}
        tab = await self._chromium.new_context(**{**settings, **context})
        try:
            page = await tab.new_page()
            page.set_default_timeout(15_000)
            page.on("console", listen)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            await page.goto(url)
            await scenario(page)
        finally:
            await tab.close()
        assert not complaints


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = Browser()
    yield chromium
    chromium.close()


def expect(thing: Any) -> Any:
    return playwright_api.expect(thing)


def send(llm: Any, prompts: list[str], **settings: Any) -> None:
    """Have prompts answered without the browser."""

    async def run() -> None:
        async for _ in llm.events(prompts, SamplingParams(max_tokens=4), **settings):
            pass

    asyncio.run(run())


def item(page: Page, text: str) -> Any:
    return page.get_by_role("treeitem", name=re.compile(re.escape(text)))


def test_three_requests_with_one_beginning_show_one_trunk(browser, live_server):
    async def scenario(page: Page) -> None:
        await expect(page.locator("#connection")).to_have_text("live")
        await expect(page.get_by_role("tree")).to_be_hidden()
        await page.get_by_role("button", name="Send three requests").click()
        await expect(page.locator(".answer")).to_have_count(3)
        await expect(page.locator("#play-status")).to_contain_text("were there already")
        trunk = item(page, "In a small house by the sea")
        await expect(trunk).to_have_attribute("aria-level", "1")
        leaves = page.locator("#tree [role=treeitem]:not([aria-expanded])")
        await expect(leaves).to_have_count(3)
        await expect(page.locator("#line-none")).to_be_visible()
        asked, found, computed = [
            int((await page.locator(f"#{name}").inner_text()).replace(",", ""))
            for name in ("asked", "found", "computed")
        ]
        assert asked == found + computed
        assert found > 100
        # The trunk is drawn once, as wide as it is long, and as high as all that begins with it.
        box = await trunk.locator("> .bar").bounding_box()
        leaf = await leaves.first.locator("> .bar").bounding_box()
        assert box["height"] > 2.5 * leaf["height"]
        assert box["width"] > leaf["width"]

    browser.visit(live_server.url, scenario)


def test_the_playground_streams_and_stops(browser, live_server):
    async def scenario(page: Page) -> None:
        await page.get_by_role("radio", name="Chat").check()
        await page.get_by_label("Question").fill("Where is the whale?")
        await page.locator("#tokens").fill("3")
        await page.get_by_role("button", name="Send", exact=True).click()
        await expect(page.locator("#play-status")).to_contain_text("3 tokens in")
        await expect(page.locator(".answer")).to_contain_text("Where is the whale?")

        await page.locator("#tokens").fill("3000")
        await page.locator("#answers").fill("8")
        await page.get_by_role("button", name="Send", exact=True).click()
        stop = page.get_by_role("button", name="Stop")
        await expect(stop).to_be_focused()  # the focus is handed on, not lost
        await expect(page.locator(".written").first).not_to_be_empty()
        await expect(page.locator("#line td").nth(1)).to_have_text("8")
        await stop.click()
        await expect(page.locator("#play-status")).to_have_text("Stopped.")
        await expect(page.locator("#line-none")).to_be_visible()

    browser.visit(live_server.url, scenario)


def test_errors_of_the_server_are_said(browser, live_server):
    async def scenario(page: Page) -> None:
        await page.locator("#beginning").fill("x " * 6000)
        await page.get_by_role("button", name="Send", exact=True).click()
        await expect(page.locator("#play-status")).to_contain_text("That did not work")
        await expect(page.get_by_role("button", name="Send", exact=True)).to_be_enabled()

    browser.visit(live_server.url, scenario, forgiven="status of 400")


def test_the_keyboard_is_enough(browser, live_server, llm):
    send(llm, [f"{TRUNK} laughed", f"{TRUNK} wept", "Call me nobody."])

    async def scenario(page: Page) -> None:
        focus = page.locator(":focus")
        await expect(item(page, TRUNK)).to_be_visible()
        await page.keyboard.press("Tab")
        await expect(focus).to_have_text("Skip to the tree")
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        await expect(focus).to_have_attribute("aria-label", re.compile("^Call me nobody"))
        await page.keyboard.press("End")
        await page.keyboard.press("ArrowLeft")  # from the last leaf to its parent
        await expect(focus).to_have_attribute("aria-label", re.compile("^The captain"))
        await expect(focus).to_have_attribute("aria-expanded", "true")
        outline = await focus.locator("> .bar").evaluate("e => getComputedStyle(e).outlineStyle")
        assert outline == "solid"
        await page.keyboard.press("ArrowLeft")
        await expect(focus).to_have_attribute("aria-expanded", "false")
        await expect(item(page, "laughed")).to_have_count(0)
        await page.keyboard.press("ArrowRight")
        await page.keyboard.press("ArrowRight")
        await expect(focus).to_have_attribute("aria-label", re.compile("^(laughed|wept)"))
        await page.keyboard.press("ArrowUp")
        await page.keyboard.press("Enter")
        detail = page.get_by_role("region", name="The chosen block")
        await expect(detail).to_contain_text(TRUNK)
        await expect(detail).to_contain_text("begins 2 texts")
        await page.keyboard.press("Home")
        await expect(focus).to_have_attribute("aria-label", re.compile("^Call me nobody"))
        await page.keyboard.press("Tab")  # one stop for the whole tree
        await expect(focus).to_have_attribute("name", "mode")
        for _ in range(6):
            await page.keyboard.press("Tab")
        await expect(focus).to_have_text("Send")
        await page.keyboard.press("Enter")
        await expect(page.locator("#play-status")).to_contain_text("were computed")
        await expect(focus).to_have_text("Send")

    browser.visit(live_server.url, scenario)


def test_the_focus_stays_while_the_tree_changes(browser, live_server, llm):
    send(llm, [f"{TRUNK} laughed"])

    async def scenario(page: Page) -> None:
        await item(page, TRUNK).focus()
        await asyncio.to_thread(send, llm, [f"{TRUNK} wept"])  # splits the block and moves it
        await expect(page.locator("#tree [role=treeitem]")).to_have_count(3)
        await expect(page.locator(":focus")).to_have_attribute(
            "aria-label", re.compile("^laughed")
        )  # the block that was there is the lower half now

        await asyncio.to_thread(lambda: asyncio.run(llm.run(lambda engine: engine.tree.clear())))
        await expect(page.get_by_role("tree")).to_be_hidden()
        await expect(page.locator("#empty")).to_be_visible()

    browser.visit(live_server.url, scenario)


def test_dropped_blocks_fade_and_leave(browser, live_server, llm):
    send(llm, [TRUNK])

    async def scenario(page: Page) -> None:
        await expect(item(page, TRUNK)).to_be_visible()
        await asyncio.to_thread(send, llm, ["Call me nobody."])
        await expect(item(page, "Call me")).to_be_visible()
        drop = lambda engine: engine.tree.evict(1)  # noqa: E731
        await asyncio.to_thread(lambda: asyncio.run(llm.run(drop)))
        await expect(page.locator("#tree .gone")).to_have_count(1)
        await expect(page.get_by_role("treeitem")).to_have_count(1)
        await expect(page.locator("#tree .gone")).to_have_count(0)

    browser.visit(live_server.url, scenario, reduced_motion="no-preference")


def test_text_is_text(browser, live_server, llm):
    bad = "<img src=x onerror=document.title=1><b>b</b>"
    send(llm, [f"{bad} {word}" for word in ("one", "two")], tenant=bad)

    async def scenario(page: Page) -> None:
        block = page.locator("#tree [role=treeitem]").first
        await expect(block).to_contain_text("<img src=x onerror=")
        await block.locator("> .bar").click()
        await expect(page.locator("#detail")).to_contain_text(bad)
        await page.locator("#question").fill(bad)
        await page.get_by_role("button", name="Send", exact=True).click()
        await expect(page.locator("#play-status")).to_contain_text("were there already")
        await expect(page.locator(".answer")).to_contain_text(bad)
        assert await page.title() == "Foreword, live"
        assert (
            await page.locator("main img, .answer b, .inside b, .beside b, #detail b").count() == 0
        )

    browser.visit(live_server.url, scenario)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_room_for_it(browser, live_server, llm, scheme):
    word = "Donaudampfschifffahrtsgesellschaft" * 8
    send(llm, [f"{TRUNK} {word} {i}" for i in range(12)], tenant=word)

    async def scenario(page: Page) -> None:
        await expect(page.locator("#tree [role=treeitem]").first).to_be_visible()
        await item(page, TRUNK).locator("> .bar").click()
        await page.locator("#question").fill(word)
        await page.locator("#answers").fill("2")
        await page.get_by_role("button", name="Send", exact=True).click()
        await expect(page.locator("#play-status")).to_contain_text("were there already")
        assert await page.evaluate("document.scrollingElement.scrollWidth") <= 360
        assert await page.evaluate(CLIPPED) == []
        paper = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 200) == (scheme == "dark")
        assert await page.evaluate(CONTRASTS) == []
        assert await page.evaluate(NAMELESS) == []

    viewport = {"width": 360, "height": 740}
    browser.visit(live_server.url, scenario, viewport=viewport, color_scheme=scheme)


def test_many_children_are_folded(browser, live_server, llm):
    send(llm, [f"{TRUNK} {letter}" for letter in "abcdefghijklmn"])

    async def scenario(page: Page) -> None:
        more = page.get_by_role("treeitem", name=re.compile("show 6 more"))
        await more.focus()
        await page.keyboard.press("Enter")
        await expect(more).to_have_count(0)
        await expect(page.locator("#tree [aria-level='2']")).to_have_count(14)
        await expect(page.locator(":focus")).to_have_attribute("aria-level", "2")

    browser.visit(live_server.url, scenario)


def test_a_key_is_asked_for_and_kept_in_the_tab(browser, make_service, start_server, llm):
    keys = Keyring.of(
        [
            {"key": KEY, "tenant": "boss", "operator": True},
            {"key": "user-key-0123456789", "tenant": "guest"},
        ]
    )
    live = start_server(make_service(keys=keys, config=ServerConfig(live_text=True)))

    async def scenario(page: Page) -> None:
        field = page.get_by_label("This server asks for a key")
        await expect(field).to_be_focused()
        await field.fill("user-key-0123456789")
        await page.keyboard.press("Enter")
        await expect(page.locator("#connection")).to_have_text("the tree is for operators only")
        await page.get_by_role("button", name="Send", exact=True).click()
        await expect(page.locator("#play-status")).to_contain_text("were computed")
        await page.evaluate("sessionStorage.clear()")
        await page.reload()
        await field.fill(KEY)
        await page.get_by_role("button", name="Use this key").click()
        await expect(page.locator("#connection")).to_have_text("live")
        await expect(field).to_be_hidden()
        await expect(page.locator("#tree .ground-name")).to_have_text("Only for guest")
        await page.reload()
        await expect(page.locator("#connection")).to_have_text("live")
        assert KEY not in await page.evaluate("location.href + document.cookie")
        assert await page.evaluate("localStorage.length") == 0

    browser.visit(live.url, scenario, forgiven="status of 40[13]")


def test_pausing_stops_the_stream(browser, live_server, llm):
    async def scenario(page: Page) -> None:
        await expect(page.locator("#connection")).to_have_text("live")
        pause = page.get_by_role("button", name="Pause")
        await pause.click()
        await expect(page.locator("#connection")).to_have_text("paused")
        await asyncio.to_thread(send, llm, [TRUNK])
        feed = live_server.server.app.state.live
        while feed.watchers:
            await asyncio.sleep(0.01)
        await expect(page.get_by_role("treeitem")).to_have_count(0)
        await pause.click()
        await expect(item(page, TRUNK)).to_be_visible()

    browser.visit(live_server.url, scenario)


CONTRASTS = """() => {
  // Texts whose colour stands out less than 4.5 to 1 from what is painted behind them.
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = parts(colour).slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const solid = (colour) => parts(colour).length < 4 || parts(colour)[3] > 0;
  const behind = (element, text) => {
    const box = text.getBoundingClientRect();
    const found = document.elementsFromPoint(box.left + 2, box.top + box.height / 2);
    const from = found.includes(element) ? found.slice(found.indexOf(element)) : [element];
    for (const at of [...from, document.body]) {
      const colour = getComputedStyle(at).backgroundColor;
      if (solid(colour)) return colour;
    }
  };
  const bad = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    const text = document.createRange();
    text.selectNodeContents(walk.currentNode);
    const box = text.getBoundingClientRect();
    if (!walk.currentNode.data.trim() || box.width < 2) continue;
    if (element.closest(".skip, .hidden, script, :disabled, [hidden]")) continue;
    element.scrollIntoView({ block: "center" });
    const [a, b] = [getComputedStyle(element).color, behind(element, text)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push([element.className, walk.currentNode.data, ratio.toFixed(2)]);
  }
  return bad;
}"""

CLIPPED = """() => {
  // Boxes with more in them than their width shows.
  const boxes = [...document.querySelectorAll("body, .panel, #tree, #output, #detail, table")];
  return boxes.filter((box) => box.scrollWidth > box.clientWidth + 1).map((box) => box.outerHTML);
}"""

NAMELESS = """() => {
  // Controls without a name, headings that skip a level, and ids that are there twice.
  const bad = [];
  for (const each of document.querySelectorAll("button, input, textarea, [role=treeitem]")) {
    const named = each.getAttribute("aria-label") || each.labels?.length || each.innerText.trim();
    if (!named) bad.push(each.outerHTML.slice(0, 80));
  }
  let level = 0;
  for (const each of document.querySelectorAll("h1, h2, h3, h4")) {
    const own = Number(each.tagName[1]);
    if (own > level + 1) bad.push(`${each.tagName} after h${level}`);
    level = own;
  }
  const ids = [...document.querySelectorAll("[id]")].map((each) => each.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) bad.push(`#${id} twice`);
  for (const each of document.querySelectorAll("[role=treeitem]")) {
    if (!each.parentElement.closest("[role=tree]")) bad.push("a treeitem outside a tree");
  }
  return bad;
}"""
