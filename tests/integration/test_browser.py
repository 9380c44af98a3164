"""The tests' browser tells of what a page does: or no test of a page would mean anything."""

from pathlib import Path

from support import axe
from support.browser import Browser

BAD = """<!DOCTYPE html><meta name="viewport" content="width=device-width"><title>bad</title>
<div style="width: 2000px">wide</div><img src="http://127.0.0.1:9/x.png">
<script>console.warn("said " + 1); setTimeout(() => { throw new Error("thrown") }, 0); window.ran = true</script>"""
GOOD = """<!DOCTYPE html><meta name="viewport" content="width=device-width"><title>good</title>
<style>body { background: #ffffff } @media (prefers-color-scheme: dark) { body { background: #000000 } }
@media print { body { background: #00ff00 } }</style><p>nothing</p>"""
PAPER = "getComputedStyle(document.body).backgroundColor"


def test_the_browser_tells_what_a_page_says_asks_for_and_how_wide_it_is(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "bad.html"
    file.write_text(BAD)
    page = browser.open(file.as_uri(), width=375)
    page.evaluate("new Promise(done => setTimeout(done, 50))")
    said = " ".join(page.said)
    assert "said 1" in said
    assert "exception" in said
    assert "http://127.0.0.1:9/x.png" in page.requests
    assert page.size()[0] == 2008
    assert page.evaluate("window.ran") is True


def test_a_quiet_page_says_nothing_in_any_scheme_and_on_paper(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "good.html"
    file.write_text(GOOD)
    page = browser.open(file.as_uri(), width=375, scheme="dark")
    assert page.evaluate(PAPER) == "rgb(0, 0, 0)"
    page.media("light")
    assert page.evaluate(PAPER) == "rgb(255, 255, 255)"
    page.media("light", "print")
    assert page.evaluate(PAPER) == "rgb(0, 255, 0)"
    page.screenshot(tmp_path / "shot.png")
    assert (tmp_path / "shot.png").read_bytes().startswith(b"\x89PNG")
    page.pdf(tmp_path / "paper.pdf")
    assert (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")
    assert (page.said, page.requests, page.size()[0]) == ([], [file.as_uri()], 375)


def test_the_checker_finds_a_picture_without_a_word_and_pale_letters(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "pale.html"
    file.write_text(GOOD.replace("<p>nothing</p>", '<p style="color: #dddddd">pale</p><img src="data:,">'))
    found = axe.findings(browser.open(file.as_uri()))
    assert {one.split()[1] for one in found} >= {"color-contrast:", "image-alt:"}
    file.write_text('<!DOCTYPE html><html lang="en"><title>good</title><main><h1>Good</h1></main></html>')
    assert axe.findings(browser.open(file.as_uri())) == []
