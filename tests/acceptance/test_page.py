"""The page in a real browser, on a real service with a real relay and model: what it shows, and what it never does."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import axe
from support.browser import Browser, Page
from support.command import query, until
from support.led import Led, led_relay
from support.told_model import ToldModel, told_model
from support.watched import HOUR, SECOND, Watched, seed, shows, some, watched

DAY = 24 * HOUR
POSTS = 10_400
"""There before the service; the page holds the newest 10,000."""
HELD = 10_000
REVERSED = "\u202eknalb si siht\u202c"
HOSTILE = [
    "<script>window.pwned = 1</script> reads the council",
    '"><img src=x onerror="window.pwned = 2"> votes on the budget',
    f"{REVERSED} the town turns around",
    "a" * 10_000,
    "The \u0000mayor\u0007 said \u2028nothing \u2066inside\u2069 \ufeffof \u061cit",
    "Z" + "\u0336" * 500 + "algo comes to town",
    "</textarea></p></li><style>*{display:none}</style>&amp;&#60;b&#62;",
]
READY = "document.querySelector('#connection').dataset.state === 'live'"
LIST = "[...document.querySelectorAll('#list .post')]"
SOON = """
const real = window.setTimeout;
window.setTimeout = (what, ms, ...rest) => real(what, ms === 120000 ? 500 : ms, ...rest);
"""
"""Two minutes are half a second."""
BUSY = "(() => { let n = 0; for (let at = 0; at < 6e8; at += 1) n += at % 7; return n; })()"
"""Some hundred milliseconds of a processor."""


@pytest.fixture(scope="module")
def relay() -> Iterator[Led]:
    with led_relay() as led:
        yield led


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToldModel]:
    with told_model(tmp_path_factory.mktemp("model")) as model:
        yield model


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, relay: Led, told: ToldModel) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("page") / "data"
    posts = some(POSTS, now=int(time.time() * SECOND))
    for at, text in enumerate(HOSTILE):
        posts[-2 - at] = posts[-2 - at]._replace(text=text)
    posts[-20] = posts[-20]._replace(state="dead", fields=None, reason="not_json")
    seed(folder, posts)
    settings: dict[str, Any] = {"label__prices": '{"mock": {"input": 1, "output": 2}}', "label__budget_money": 1}
    with watched(folder, relay, told.url, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def page(browser: Browser, service: Watched) -> Page:
    """One that is open for the whole of this file."""
    opened = browser.open(service.url + "/")
    shows(opened.evaluate, READY, "the page to be live")
    until(lambda: len(ids(opened)) == 20, "the newest posts")
    return opened


def total(page: Page) -> int:
    """How many posts it holds, by what it says."""
    said = str(page.evaluate("document.querySelector('#range').textContent"))
    return int(said.rpartition(" of ")[2].replace(",", "") or 0) if " of " in said else 0


def ids(page: Page) -> list[str]:
    found: list[str] = page.evaluate(f"{LIST}.map((node) => node.dataset.id)")
    return found


def text_of(page: Page, selector: str) -> str:
    return str(page.evaluate(f"document.querySelector({json.dumps(selector)}).textContent"))


def says(page: Page, selector: str, words: str) -> None:
    """Wait until a part of the page says so."""
    until(lambda: words in text_of(page, selector), f"{selector} to say {words}")


def choose(page: Page, value: str) -> None:
    """In the first list of choices."""
    page.evaluate(
        f"(() => {{ const list = document.querySelector('#choices select'); list.value = {json.dumps(value)}; "
        "list.dispatchEvent(new Event('change')); })()"
    )


def search(page: Page, words: str) -> None:
    page.evaluate(
        f"(() => {{ const field = document.querySelector('#search'); field.value = {json.dumps(words)}; "
        "field.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )


@pytest.mark.long
def test_it_holds_ten_thousand_posts_and_no_task_takes_a_tenth_of_a_second(browser: Browser, service: Watched) -> None:
    """Of a processor: how long a task waits while others have it is no matter of ours."""
    browser.open(service.url + "/").close()  # a browser that has drawn nothing yet has fonts to look for
    page = browser.open("about:blank")
    with browser.traced() as tasks:
        page.go(service.url + "/")
        until(lambda: total(page) >= HELD, "ten thousand posts to be there", 240)
        for words in ("council", "the bridge over", "", "number 9", ""):
            search(page, words)
            shows(page.evaluate, f"document.querySelector('#search').value === {json.dumps(words)}", "the search")
            page.evaluate("new Promise((done) => setTimeout(done, 400))")
        for _ in range(5):
            page.evaluate(
                "document.querySelector('#older').click(); new Promise((done) => requestAnimationFrame(() => done(1)))"
            )
        page.evaluate("document.querySelector('input[name=choice-0][value=\"civic\"]').click()")
        page.evaluate("scrollTo(0, document.body.scrollHeight); new Promise((done) => setTimeout(done, 400))")
    longest = sorted(tasks, key=lambda task: -task.processor)[:5]
    print(len(tasks), longest)
    assert [task for task in longest if task.processor > 100] == []
    assert page.evaluate(f"{LIST}.length") == 20
    with browser.traced() as tasks:
        page.evaluate(BUSY)
    assert max(task.processor for task in tasks) > 100, "a long task is seen"
    page.close()


def test_it_loads_without_a_word_in_the_console_and_asks_nobody_else(page: Page, service: Watched) -> None:
    shows(page.evaluate, "document.querySelector('#shares-hero .value')", "shares")
    assert page.said == []
    assert len(page.requests) > 5
    assert {address for address in page.requests if not address.startswith(service.url + "/")} == set()


def test_every_section_says_something_of_its_own(page: Page, service: Watched) -> None:
    for selector, words in {
        "#tiles": "Waiting for a label", "#stages-collect": "source", "#stages-label": "store",
        "#shares-hero": "n = ", "#shares-tables": "lean, where civic is civic", "#days": "2 h outdated cursor",
        "#gaps": "outdated cursor",
        "#cost": "of 1.00 USD today", "#latency": "median", "#failures": "not json", "#drift": "No probe",
        "#rejects": "What became of posts", "#shares-note": "95 %",
    }.items():  # fmt: skip
        shows(
            page.evaluate,
            f"document.querySelector({json.dumps(selector)}).textContent.includes({json.dumps(words)})",
            words,
        )
    stages = page.evaluate("[...document.querySelectorAll('.stage-name')].map((node) => node.textContent)")
    assert stages == ["source", "decode", "worker", "journal", "ledger", "queue", "label", "store"]
    began = query(service.folder / "journal.db", "SELECT min(first_at) FROM held")[0][0]
    dates = int(time.time() * SECOND) // DAY - began // DAY + 1  # 8, or 9 when a midnight has passed since
    assert page.evaluate("document.querySelectorAll('.days .strip').length") == dates


def test_hostile_texts_stay_text(page: Page) -> None:
    held: list[str] = page.evaluate(f"{LIST}.map((node) => node.querySelector('bdi').textContent)")
    assert HOSTILE[0] in held
    assert HOSTILE[1] in held
    assert HOSTILE[6] in held
    assert "a" * 1000 + "…" in held
    assert "\u2039U+202E\u203aknalb si siht\u2039U+202C\u203a the town turns around" in held
    marked = "The [0000]mayor[0007] said [2028]nothing [2066]inside[2069] [FEFF]of [061C]it"
    assert re.sub(r"\[(\w+)\]", "\u2039U+\\1\u203a", marked) in held
    assert "Z" + "\u0336" * 4 + "algo comes to town" in held
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.querySelectorAll('.post script, .post img, .post style').length") == 0
    page.resize(375)
    assert page.size()[0] == 375
    page.resize(1280)


def test_a_text_cannot_become_markup_even_by_a_mistake_of_ours(page: Page) -> None:
    tried = (
        "(() => { try { document.createElement('p').innerHTML = '<b>x</b>'; return 'taken'; } "
        "catch (error) { return error.name; } })()"
    )
    assert page.evaluate(tried) == "TypeError"


def test_links_go_to_the_post_and_tell_nobody_from_where(page: Page) -> None:
    links = page.evaluate(
        f"{LIST}.map((node) => [node.dataset.id, node.querySelector('a').href, node.querySelector('a').rel])"
    )
    assert len(links) == 20
    for name, href, rel in links:
        did, _, rkey = name.partition("/")
        assert (href, rel) == (f"https://bsky.app/profile/{did}/post/{rkey}", "noopener noreferrer")


def test_a_new_post_appears_with_its_label_and_the_rates_move(page: Page, service: Watched) -> None:
    before = text_of(page, "#tiles")
    name = service.post("The senate votes on the new election law tonight, and everybody should write to them.")
    shows(
        page.evaluate,
        f"document.querySelector('#list .post')?.dataset.id === {json.dumps(name)}",
        "the new post, on top",
    )
    chips = page.evaluate(
        "[...document.querySelectorAll('#list .post:first-child .chip')].map((node) => node.textContent)"
    )
    assert chips[0].split()[0] in {"civic", "not"}
    until(lambda: text_of(page, "#tiles") != before, "the tiles to change")


def test_filters_and_search_show_what_fits_alone(page: Page) -> None:
    page.evaluate("document.querySelector('input[name=choice-0][value=\"civic\"]').click()")
    civic = until(lambda: total_of_fits(page), "a filter")
    chips = page.evaluate(f"{LIST}.map((node) => node.querySelector('.chip').firstChild.textContent)")
    assert set(chips) == {"civic"}
    choose(page, "moderate")
    until(lambda: 0 < total_of_fits(page) < civic, "a second filter")
    leans = page.evaluate(f"{LIST}.map((node) => node.querySelectorAll('.chip')[1].textContent)")
    assert all("moderate" in lean for lean in leans)
    assert "posts fit" in text_of(page, "#matches")
    choose(page, "")
    page.evaluate("document.querySelector('input[name=choice-0][value=\"\"]').click()")
    search(page, "TOWN TURNS")
    until(lambda: total_of_fits(page) == 1, "the search")
    search(page, "no post says this")
    until(lambda: ids(page) == [], "nothing to fit")
    search(page, "")
    until(lambda: len(ids(page)) == 20, "all to be back")


def total_of_fits(page: Page) -> int:
    """How many posts fit, while there is a filter."""
    said = text_of(page, "#range").partition(" that fit")[0]
    return (
        int(said.rpartition(" of ")[2].replace(",", ""))
        if "that fit" in text_of(page, "#range") and " of " in said
        else 0
    )


def test_who_does_not_follow_is_not_disturbed_and_can_catch_up(page: Page, service: Watched) -> None:
    page.evaluate("document.querySelector('#follow').click()")
    before = ids(page)
    name = service.post("The governor of the state promised to repair the old bridge before the next winter comes.")
    shows(page.evaluate, "!document.querySelector('#fresh').hidden", "the button")
    assert ids(page) == before
    assert text_of(page, "#fresh") == "Show 1 newer"
    page.evaluate("document.querySelector('#fresh').click()")
    assert ids(page)[0] == name
    page.evaluate("document.querySelector('#follow').click()")


def test_a_post_that_is_deleted_or_whose_account_is_hidden_vanishes(page: Page, service: Watched, relay: Led) -> None:
    other = "did:plc:hiddenhiddenhiddenhidden"
    kept = service.post("Our library on the main street stays open on Sundays now, which the whole town asked for.")
    gone = service.post("The school board wants to close two schools next year, and the parents were not asked.")
    hidden = service.post(
        "My neighbour says that the price of milk is a matter for the congress, not for the shops.", did=other
    )
    until(lambda: {kept, gone, hidden} <= set(ids(page)), "the posts to be there")
    relay.delete(gone.partition("/")[2], did=gone.partition("/")[0], at=int(time.time() * SECOND))
    relay.account("takendown", did=other, at=int(time.time() * SECOND))
    until(lambda: not {gone, hidden} & set(ids(page)), "them to vanish", 90)
    assert kept in ids(page)
    assert "school board wants to close two schools" not in page.evaluate("document.documentElement.outerHTML")


def test_it_survives_a_restart_of_the_service_and_says_meanwhile_that_it_waits(
    browser: Browser, page: Page, service: Watched
) -> None:
    impatient = browser.open("about:blank")
    impatient.call("Page.addScriptToEvaluateOnNewDocument", source=SOON)
    impatient.go(service.url + "/")
    until(lambda: len(ids(impatient)) == 20, "the posts to be there")
    shows(page.evaluate, READY, "the page to be live")
    service.end()
    shows(
        page.evaluate,
        "document.querySelector('#connection').textContent.startsWith('reconnecting; what is shown is of')",
        "it to say so",
    )
    assert text_of(page, "#health") == "not known"
    until(lambda: ids(impatient) == [], "posts to go, of which nobody hears whether they were deleted")
    last = ids(page)[0]
    service.begin()
    shows(page.evaluate, READY, "it to be back")
    until(lambda: last in ids(page), "the list to be there again")
    name = service.post("The mayor of our little town talked about the election for an hour, and people listened.")
    until(lambda: ids(page) and ids(page)[0] == name, "a new post after the restart")
    until(lambda: ids(impatient) and ids(impatient)[0] == name, "the list to be there again")
    until(lambda: text_of(page, "#health") == text_of(impatient, "#health") == "ready", "it to be well")
    impatient.close()


def test_when_the_model_is_away_the_page_says_so_and_why(page: Page, told: ToldModel, service: Watched) -> None:
    told.tell(status=503)
    try:
        service.post("A reporter from the evening news asked the governor about the taxes, and got no answer at all.")
        shows(
            page.evaluate,
            "[...document.querySelectorAll('.stage')].some((node) => node.dataset.state === 'down')",
            "the stage",
        )
        shows(page.evaluate, "document.querySelector('#notice').textContent.includes('503')", "the reason")
    finally:
        told.tell(status=200)
    shows(page.evaluate, "document.querySelector('#notice').hidden", "all to be well")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 375), ("dark", 375)])
def test_the_accessibility_checker_finds_nothing_serious(page: Page, scheme: Any, width: int, tmp_path: Path) -> None:
    page.media(scheme)
    page.resize(width)
    page.evaluate("new Promise((done) => setTimeout(done, 100))")
    assert axe.findings(page) == []
    assert page.size()[0] == width
    page.screenshot(tmp_path / "page.png")
    page.media("light")
    page.resize(1280)


def test_the_keyboard_reaches_everything_in_order_and_shows_where_it_is(browser: Browser, service: Watched) -> None:
    page = browser.open(service.url + "/")
    says(page, "#shares-hero", "n = ")
    says(page, "#cost", "today")
    page.evaluate("document.querySelector('#follow').click()")  # or the list would move meanwhile
    reachable = page.evaluate(
        "[...document.querySelectorAll('a[href], button, input, select, summary, [tabindex=\"0\"]')]"
        ".filter((node) => !node.disabled && node.checkVisibility() && node.type !== 'radio').length"
    )
    page.evaluate("window.reached = []")
    page.evaluate(
        "document.addEventListener('focusin', ({ target }) => { "
        "if (target.type !== 'radio') window.reached.push(target); "
        "const style = getComputedStyle(target.type === 'radio' ? target.nextElementSibling : target); "
        "if (style.outlineStyle === 'none') window.unseen = target.outerHTML; })"
    )
    for _ in range(reachable + 20):
        page.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
    assert page.evaluate("new Set(window.reached).size") >= reachable - 1
    assert page.evaluate("window.unseen") is None
    first = page.evaluate("window.reached[0].textContent")
    assert first == "Skip to the content"
    page.evaluate("document.querySelector('input[name=choice-0]').focus()")
    page.press("ArrowRight")
    assert page.evaluate("document.activeElement.value") == "civic"
    page.close()


def test_live_regions_do_not_chatter(page: Page) -> None:
    """What is read out by itself changes only when the connection does, or when somebody filters."""
    page.evaluate(
        "window.spoken = 0; for (const node of document.querySelectorAll('[role=status], [aria-live]')) "
        "new MutationObserver(() => { window.spoken += 1; })"
        ".observe(node, { childList: true, characterData: true, subtree: true })"
    )
    heard = page.evaluate("document.querySelectorAll('.spark-line')[0].getAttribute('points').length")
    shows(
        page.evaluate,
        f"document.querySelectorAll('.spark-line')[0].getAttribute('points').length !== {heard}",
        "the page to be told something",
    )
    assert page.evaluate("window.spoken") == 0


@pytest.fixture
def ended() -> Iterator[list[Watched]]:
    """Services of one test; none outlives it."""
    services: list[Watched] = []
    yield services
    for one in services:
        if one.process is not None:
            one.end(kill=True)


def test_with_a_token_a_browser_signs_in_once_and_nothing_is_told_before(
    browser: Browser, tmp_path: Path, relay: Led, told: ToldModel, ended: list[Watched]
) -> None:
    token = "a-token-of-some-length"
    seed(tmp_path / "data", some(30, now=int(time.time() * SECOND)))
    service = Watched(tmp_path / "data", relay, told.url, http__token=token)
    ended.append(service)
    service.headers = {"Authorization": f"Bearer {token}"}
    service.begin()
    page = browser.open(service.url + "/")
    assert "number" not in page.evaluate("document.body.textContent")
    assert axe.findings(page) == []
    for given, words in (("wrong", "This is not the token"), (token, "")):
        page.evaluate("document.querySelector('#token').focus()")
        page.call("Input.insertText", text=given)
        page.press("Enter")
        if words:
            shows(
                page.evaluate, f"document.querySelector('#why').textContent.includes({json.dumps(words)})", "a refusal"
            )
    shows(page.evaluate, f"document.querySelector('#connection') && {READY}", "the page")
    until(lambda: total(page) == 30, "the posts")
    assert page.evaluate("document.cookie") == ""
    assert all(token not in address for address in page.requests)
    service.end()
    service.begin()
    shows(page.evaluate, READY, "it to be back, without signing in again")
    page.evaluate("document.querySelector('#logout').click()")
    shows(page.evaluate, "document.querySelector('#token')", "the way in")
    page.close()
    service.end()
