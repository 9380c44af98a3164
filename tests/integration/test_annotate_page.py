"""Two people label at once in a real browser, by keyboard alone, and what comes of it is what was worked out by hand.

    post   anna     ben      decided    civic agrees   lean agrees
    p1     C L y    C L y               yes            yes
    p2     C R y    C R y               yes            yes
    p3     C U n    C M n    C U n      yes            no
    p4     C L y    N        C L y      no
    p5     N        C R y    N          no
    p6     N        N                   yes
    p7     N        N                   yes
    p8     N        N                   yes
    p9     C M u    ?        C M u      ("can't tell" is counted and not compared)
    p10    x        x                   (not English: nothing else is asked)

civic, 8 posts with two judgements: 6 agree. Each said C four times and N four times, so chance is 1/2 and
kappa = (6/8 - 1/2) / (1 - 1/2) = 1/2. Of 16 judgements 8 are C and 8 N; disagreeing pairs 4/16, expected
1 - (8*7 + 8*7) / (16*15) = 8/15, so alpha = 1 - (1/4) / (8/15) = 17/32.

lean, 3 posts: 2 agree. anna L R U, ben L R M: chance 1/9 + 1/9, kappa = (2/3 - 2/9) / (7/9) = 4/7.
Of 6 judgements 2 L, 2 R, 1 U, 1 M; disagreeing 2/6, expected 1 - (2*1 + 2*1) / (6*5) = 13/15, alpha = 8/13.
"""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from civicsky.annotate.draw import order_for
from support import axe, command, hand
from support.browser import Browser, Page
from support.command import until
from support.hand import Sitting, fill, keys_for, post, uri_of

ANNA = dict(zip(range(1, 11), ["C L y", "C R y", "C U n", "C L y", "N", "N", "N", "N", "C M u", "x"], strict=True))
BEN = dict(zip(range(1, 11), ["C L y", "C R y", "C M n", "N", "C R y", "N", "N", "N", "?", "x"], strict=True))
DECIDED = {3: "C U n", 4: "C L y", 5: "N", 9: "C M u"}
KAPPA = {"civic": Fraction(1, 2), "lean": Fraction(4, 7)}
ALPHA = {"civic": Fraction(17, 32), "lean": Fraction(8, 13)}
AGREE = {"civic": Fraction(6, 8), "lean": Fraction(2, 3)}
SECRET = ["0.91", "91234", "the-model", "prompt", "did:plc", "at://", "bafycid", "p_sampled", "probability", "uniform",
          "uncertain", '"seed', "population", "labelled"]  # fmt: skip
HOSTILE = (
    "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'> \u202eturned\u202c "
    + "w" * 9_500
    + " z\u0301\u0301\u0301\u0301\u0301\u0301\u0301 \x07 end"
)


def text_of(n: int) -> str:
    return f"post number {n}"


def keys(said: dict[int, str]) -> dict[str, str]:
    return {text_of(n): keys_for(one) for n, one in said.items()}


def opened(browser: Browser, sitting: Sitting, **how: Any) -> Page:
    page = browser.open(sitting.address, **how)
    until(lambda: hand.place(page), "the page to begin", 20)
    return page


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    return fill(tmp_path / "data", [post(n, text_of(n)) for n in range(1, 11)])


@pytest.fixture
def gold(browser: Browser, ten: Path, tmp_path: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """(GOLD, what `export` told, all that the pages received), after two people voted at once and one decided."""
    anna, ben = Sitting(ten, "--annotator", "anna", "--posts", 10, "--seed", 7), Sitting(ten, "--annotator", "ben")
    pages = [opened(browser, one) for one in (anna, ben)]
    orders: list[list[str]] = [[], []]
    while any(hand.place(page).startswith("Post") for page in pages):  # in turns
        for page, said, order in zip(pages, (ANNA, BEN), orders, strict=True):
            if hand.place(page).startswith("Post"):
                order.append(hand.shown(page))
                hand.type_answer(page, keys(said)[order[-1]])
    for order, who in zip(orders, ("anna", "ben"), strict=True):
        assert order == [text_of(int(uri[-3:])) for uri in order_for(7, who, map(uri_of, range(1, 11)))]
    assert orders[0] != orders[1]
    assert anna.end() == "anna: 10 of 10 posts done"
    assert ben.end() == "ben: 10 of 10 posts done"
    judge = Sitting(ten, "--adjudicate", "the moderator")
    page = opened(browser, judge)
    assert sorted(hand.work(page, keys(DECIDED))) == sorted(map(text_of, DECIDED))
    received = [body for one in (*pages, page) for body in one.received()]
    for one in (*pages, page):
        assert [line for line in one.said if "error" in line] == []
        assert {url.partition("/api")[0].rpartition(":")[0] for url in one.requests} == {"http://127.0.0.1"}
    judge.end()
    file = tmp_path / "gold.jsonl"
    ended = hand.run(ten, "export", "--out", file, "--json")
    assert ended.code == 0, ended.err
    return file, json.loads(ended.out), received


def test_two_peoples_votes_end_in_gold_whose_kappa_and_alpha_were_worked_out_by_hand(
    gold: tuple[Path, dict[str, Any], list[str]], ten: Path, tmp_path: Path, model: tuple[str, Path]
) -> None:
    file, told, received = gold
    fields = {field["name"]: field for field in told["fields"]}
    for name in ("civic", "lean"):
        several = fields[name]["annotators"]
        assert several["alpha"]["value"] == pytest.approx(float(ALPHA[name]))
        assert several["agreement"]["value"] == pytest.approx(float(AGREE[name]))
        (pair,) = several["pairs"]
        assert (pair["first"], pair["second"]) == ("anna", "ben")
        assert pair["kappa"]["value"] == pytest.approx(float(KAPPA[name]))
    assert fields["civic"]["annotators"]["items"] == 8
    assert fields["vote_english"]["classes"] == {"yes": 9, "no": 1}
    assert told["annotators"]["anna"] == {"posts": 10, "votes": 10, "skips": 0}
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 24
    assert {row["annotator"] for row in rows} == {"anna", "ben", "adjudicated"}
    assert {(row["draw_kind"], row["draw_seed"], row["draw_population"], row["draw_p"]) for row in rows} == {
        ("uniform", 7, 10, 1.0)
    }
    assert "post number" not in file.read_text()
    # The same figures from `civicsky evaluate`, which reads that file.
    out = tmp_path / "evaluation"
    options = ("--model-url", model[0], "--model", "mock", "--data-dir", ten, "--out", out, "--json")
    ended = command.run("evaluate", file, *options, label__slots=1, log__level="error")
    assert ended.code == 0, ended.err
    found = {field["name"]: field for field in json.loads(ended.out)["fields"]}
    for name in ("civic", "lean"):
        assert found[name]["annotators"]["alpha"]["value"] == pytest.approx(float(ALPHA[name]))
        assert found[name]["annotators"]["pairs"][0]["kappa"]["value"] == pytest.approx(float(KAPPA[name]))
    assert found["civic"]["outcomes"] == {"judged": 9, "not_judged": 1}
    assert found["civic"]["classes"] == {"civic": 5, "not civic": 4}
    # And what the model said, or how the posts were drawn, was nowhere in what any page received.
    bodies = [body for body in received if body.startswith('{"') and not body.startswith('{"tab"')]
    assert len(bodies) == 3 + 10 + 10 + 4
    for word in SECRET:
        assert [body for body in bodies if word in body] == [], word
    deciding = [body for body in bodies if '"votes":[' in body]
    assert len(deciding) == 4
    assert all(name not in body for body in deciding for name in ("anna", "ben"))
    assert all('"letter":"A"' in body and '"letter":"B"' in body for body in deciding)


@pytest.fixture
def one(browser: Browser, tmp_path: Path) -> tuple[Sitting, Page, Path]:
    """One person's page over a few posts, the first of them hostile."""
    folder = fill(
        tmp_path / "data",
        [
            post(1, HOSTILE, link={"uri": "javascript:alert(1)", "title": "<b>bold</b>", "description": "\u2066"}),
            post(2, "An ordinary post.", alts=["<i>a cat</i>"]),
            post(3, "Another one."),
        ],
    )
    sitting = Sitting(folder, "--annotator", "anna", "--seed", 1)
    page = opened(browser, sitting, width=375, height=740, scheme="dark")
    return sitting, page, folder


def go_to(page: Page, beginning: str) -> None:
    """Move with the keys until a post is shown that begins so."""
    for key in "bbbfff":
        if hand.shown(page).startswith(beginning):
            return
        page.strike(key)
        hand.idle(page)
    assert hand.shown(page).startswith(beginning)


def test_hostile_texts_stay_texts_and_the_page_fits_a_phone_in_the_dark(one: tuple[Sitting, Page, Path]) -> None:
    _, page, _ = one
    go_to(page, "<script>")
    assert page.evaluate("typeof window.hit") == "undefined"
    assert page.evaluate("document.querySelectorAll('#post script, #post img, #post a, #post b').length") == 0
    text = hand.shown(page)
    assert "<script>window.hit = 1</script><img src=x" in text
    assert "\u2039U+202E\u203aturned" in text
    assert "w" * 9_000 in text
    assert "z\u0301\u0301\u0301\u0301 " in text
    assert page.size()[0] == 375
    assert axe.findings(page) == []
    for scheme in ("light", "dark"):
        page.media(scheme)
        assert axe.findings(page) == []
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(246, 245, 241)", "dark": "rgb(20, 24, 28)"}[scheme]
    page.resize(1280)
    assert axe.findings(page) == []
    assert page.size()[0] == 1280
    assert page.said == []


def test_every_command_has_a_key_and_a_button(one: tuple[Sitting, Page, Path]) -> None:
    sitting, page, folder = one
    go_to(page, "An ordinary")
    page.strike("1")
    until(
        lambda: "lean" in page.evaluate("document.querySelector('.field.now legend').textContent"), "the second field"
    )
    assert hand.votes(folder) == [], "half an answer is none"
    page.strike("u")
    assert page.evaluate("document.querySelector('.field.now legend').textContent") == "civic"
    page.strike("n")
    page.call("Input.insertText", text="1 is not a vote, \u00e9")
    page.strike("Escape")
    hand.type_answer(page, "2")
    assert hand.votes(folder) == [("anna", uri_of(2), "vote", 1, '{"civic": "not civic"}', "1 is not a vote, \u00e9")]
    # Undo brings it back; what is answered then is a vote of its own.
    page.strike("u")
    hand.idle(page)
    assert hand.shown(page).startswith("An ordinary")
    assert len(hand.votes(folder)) == 1
    page.strike("1")
    page.strike("0")
    hand.type_answer(page, "3")
    assert [row[4] for row in hand.votes(folder)] == [
        '{"civic": "not civic"}',
        '{"civic": "civic", "lean": "?", "us_politics": "unclear"}',
    ]
    # Skipped posts come last, and again after a restart.
    hand.type_answer(page, "s")
    hand.type_answer(page, "x")
    assert hand.place(page).startswith("Post"), "the skipped one"
    page.strike("c")
    until(lambda: page.evaluate("!document.getElementById('codebook').hidden"), "the codebook", 5)
    assert "A post is civic when" in page.evaluate("document.getElementById('codebook').innerText")
    assert axe.findings(page) == []
    page.strike("Escape")
    assert page.evaluate("document.getElementById('codebook').hidden")
    # The same with Tab and Enter, and with single keys turned off.
    page.evaluate("document.getElementById('keys').click()")
    page.strike("1")
    assert page.evaluate("document.querySelectorAll('[aria-pressed=true]').length") == 0
    page.evaluate("document.getElementById('post').focus()")
    page.strike("Tab")
    page.strike("Tab")
    assert page.evaluate("document.activeElement.textContent") == "2not civic"
    before = hand.done(page)
    page.strike("Enter")
    until(lambda: hand.done(page) == before + 1, "the answer to be kept", 5)
    assert hand.place(page) == "Nothing is left to label"
    assert axe.findings(page) == []
    assert sitting.end() == "anna: 3 of 3 posts done"


@pytest.mark.parametrize("place", ["annotate.vote:2", "annotate.voted:2"])
def test_a_command_that_is_killed_in_the_midst_of_a_vote_loses_none_and_doubles_none(
    browser: Browser, ten: Path, place: str
) -> None:
    first = Sitting(ten, "--annotator", "anna", "--seed", 3, fault=place)
    page = opened(browser, first)
    hand.type_answer(page, "2")
    page.strike("2")
    command.finish(first.process, 20)
    until(lambda: "Not saved yet" in page.evaluate("document.getElementById('alarm').textContent"), "to be told", 10)
    assert len(hand.votes(ten)) == (1 if place == "annotate.vote:2" else 2)
    second = Sitting(ten, "--annotator", "anna", "--port", first.port)
    page.evaluate(f"location.hash = '{second.address.partition('#')[2]}'")
    until(lambda: hand.done(page) == 2, "the second vote to be kept", 20)
    assert [row[4] for row in hand.votes(ten)] == ['{"civic": "not civic"}'] * 2
    assert hand.place(page) == "Post 3 of 10"
    assert page.evaluate("document.getElementById('alarm').hidden")
    hand.type_answer(page, "2")
    assert len(hand.votes(ten)) == 3
    second.end()


def test_a_post_that_is_deleted_while_it_is_shown_is_not_kept_and_never_shown_again(
    one: tuple[Sitting, Page, Path],
) -> None:
    sitting, page, folder = one
    go_to(page, "Another one")
    hand.type_answer(page, "2")
    go_to(page, "An ordinary")
    hand.deleted(folder, 2)
    hand.deleted(folder, 3)
    page.strike("2")
    until(lambda: "is gone" in page.evaluate("document.getElementById('status').textContent"), "to be told", 10)
    assert hand.shown(page).startswith("<script>")
    assert [row[1] for row in hand.votes(folder)] == [uri_of(3)]
    assert page.evaluate("document.getElementById('far').textContent") == "1 of 2 done, 1 no longer there"
    for key in "bf":
        page.strike(key)
        hand.idle(page)
    until(lambda: "2 no longer" in page.evaluate("document.getElementById('far').textContent"), "both to be away", 10)
    assert hand.votes(folder) == [("anna", uri_of(3), "vote", None, None, "")], "what was said of it is gone, too"
    sitting.end()
