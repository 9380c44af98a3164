"""The page of a period, as a reader sees it: in a real browser, in both colour schemes, on a phone and on paper."""

import json
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest

from civicsky.document import Document
from civicsky.errors import Usage
from civicsky.ledger import Ledger
from civicsky.loading import load
from civicsky.model import format_time, now_us
from civicsky.research.period import DAY_US, Wanted, gather
from civicsky.research.period_report import GENERATOR, report, text_table
from civicsky.sample import HOUR_US
from civicsky.store import Collection, SqliteStore
from support import command
from support.browser import Browser, Page
from support.twenty import BY_DAY, SHARES, twenty

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</td></table></main></body><img src=http://evil.example/x onerror=window.hacked=1>",
    '"><svg onload=window.hacked=1><style>*{display:none}</style>',
    "turned \u202eabc\u202c hidden \u200b",
    "w" * 10_000,
    "Z" + "\u0301" * 500,
    "{{ 7 * 7 }} $x^2$ _hidden & <!-- ",
    "\u0633\u0644\u0627\u0645",
]
MAY_BE = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "span", "strong", "small", "em",
    "code", "bdi", "a", "nav", "ul", "ol", "li", "dl", "dt", "dd", "div", "figure", "figcaption", "table", "thead",
    "tbody", "tr", "th", "td", "svg", "g", "path", "defs", "use", "text", "tspan", "clipPath", "rect",
}  # fmt: skip
DRAWN = """[...document.querySelectorAll('svg')].filter(svg => svg.getBoundingClientRect().width > 0).map(svg => ({
  says: svg.getAttribute('aria-label'), width: svg.getBoundingClientRect().width,
  height: svg.getBoundingClientRect().height,
  paths: [...svg.querySelectorAll('path, use')].filter(path => {
    const box = path.getBoundingClientRect(); return box.width + box.height > 2 }).length}))"""
TABLES = """Object.fromEntries([...document.querySelectorAll('h3')].map(title => {
  const rows = [];
  for (let at = title.nextElementSibling; at && !/^H[23]$/.test(at.tagName); at = at.nextElementSibling)
    rows.push(...[...at.querySelectorAll('tbody tr')].map(row => [...row.cells].map(cell => cell.innerText)));
  return [title.innerText, rows] }))"""


async def fill(folder: Path, **documents: list[Document]) -> None:
    store = await SqliteStore.open(folder / "posts.db")
    for name, some in documents.items():
        collection: Collection = name  # type: ignore[assignment]
        await store.put(collection, [{"v": 1, **one} for one in some])
    await store.close()


async def made(folder: Path, **wanted: Any) -> Path:
    file = folder / "report.html"
    await report(load(None, {"data_dir": str(folder)}), Wanted(**wanted), file)
    return file


def numbers(tables: dict[str, list[list[str]]], title: str) -> dict[str, str]:
    """By the first cell of a row what the second begins with."""
    return {row[0]: row[1].split()[0] for row in tables[title] if len(row) > 1 and row[1]}


async def test_the_page_shows_the_shares_that_were_reckoned_by_hand(tmp_path: Path, browser: Browser) -> None:
    await fill(tmp_path, posts=twenty())
    page = browser.open((await made(tmp_path)).as_uri())
    tables = page.evaluate(TABLES)
    for field, by_hand in SHARES.items():
        shown = numbers(tables, f"civic: {field}")
        assert {value: shown[value] for value in by_hand} == {value: f"{share:.3f}" for value, share in by_hand.items()}
    days = {
        row[0]: [cell.split()[0] for cell in row[2:]] for row in tables["civic: civic"] if row[0].startswith("2026")
    }
    assert days == {day: [f"{by_hand['civic']:.3f}", f"{by_hand['not civic']:.3f}"] for day, by_hand in BY_DAY.items()}
    assert "43.2 %" in page.evaluate("document.querySelector('.tiles').innerText"), "35 of 81"
    one_day = browser.open((await made(tmp_path, since="2026-11-20", until="2026-11-21")).as_uri())
    assert numbers(one_day.evaluate(TABLES), "civic: civic")["civic"] == "0.333"


def hostile_store() -> dict[str, list[Document]]:
    """Whatever others may choose, chosen by somebody who means harm."""
    start, posts, labels, hours, coverage = (now_us() // DAY_US - 3) * DAY_US, [], [], [], []
    for n, text in enumerate(HOSTILE * 3):
        at = format_time(start + n * 2 * HOUR_US)
        fields = {"civic": "civic", "lean": text, "us_politics": text}
        said = {name: {"value": value, "probability": None} for name, value in fields.items()}
        label = {"fields": said, "p_sampled": 0.5, "model": text, "prompt": text}
        uri = f"at://did:plc:{n}/app.bsky.feed.post/{n}"
        posts.append(
            {
                "_id": uri, "uri": uri, "did": f"did:plc:{n}", "state": "live", "event_at": at, "text": text,
                "p_kept": 1.0, "origins": [{"kind": "firehose", "host": text}, {"kind": "feed", "name": text}],
                "filter": {"flags": [text]}, "tags": [text], "links": [f"https://{text}/", f"https://{text}.example"],
                "link": None, "reply_root": None, "labels": {"civic": label} if n % 4 else {},
                "unlabelled": {} if n % 4 else {"civic": {"reason": text, "p_sampled": 1.0}},
            }
        )  # fmt: skip
        labels.append(
            {"_id": f"l{n}", "at": at, "model": text, "tokens_in": 9, "tokens_out": 1, "calls": 1, "cost": n * 0.1,
             "currency": text}
        )  # fmt: skip
        counts = {"frame": {"received": 9, text: 1}, "post": {"kept": 5, "rejected": 4, text: 1}, "feed": {text: 2}}
        hours.append(
            {"_id": at, "hour": at, "counts": counts, "rejected": {text: 4}, "quarantined": {text: 1}}
        )  # fmt: skip
        end = format_time(start + (n * 2 + 1) * HOUR_US)
        coverage += [
            {"_id": f"held{n}", "kind": "held", "host": text, "epoch": 1, "resume": "gap", "first_seq": 1,
             "last_seq": 2, "first_at": at, "last_at": end, "frames": 3},
            {"_id": f"gap{n}", "kind": "gap", "host": text, "epoch": 1, "cause": text, "after_seq": 1, "at": end,
             "from_at": end, "until_seq": 2, "until_at": format_time(start + (n * 2 + 2) * HOUR_US)},
        ]  # fmt: skip
    runs = [
        {"_id": f"r{n}", "started": one["event_at"], "version": text, "filter_version": text, "settings": text}
        for n, (one, text) in enumerate(zip(posts, HOSTILE, strict=False))
    ]
    shots = [{"_id": f"s{n}", "at": one["event_at"], "why": text, "rank": 1} for n, (one, text) in enumerate(
        zip(posts, HOSTILE, strict=False))]  # fmt: skip
    return {"posts": posts, "labels": labels, "hours": hours, "coverage": coverage, "runs": runs, "snapshots": shots}


async def hostile_ledger(folder: Path) -> None:
    ledger = await Ledger.open(folder / "ledger.db")
    for n, text in enumerate(HOSTILE):
        await ledger.database.execute(
            "INSERT INTO spend (day, model, calls, tokens_in, tokens_out, tokens_reasoning, cost, posts) "
            "VALUES (?,?,1,9,1,0,0.5,1)",
            (format_time((now_us() // DAY_US - 2) * DAY_US)[:10], text),
        )
        said = json.dumps({"civic": text})
        await ledger.database.execute(
            "INSERT INTO probe VALUES (?,'civic',?,?,'r','did:plc:a',1,NULL,NULL,NULL,?,?)",
            (now_us() // DAY_US - 1 - n % 2, text, text, said, said),
        )
    await ledger.close()


def look(page: Page, width: int) -> None:
    """What holds for every page, however it is looked at."""
    assert page.said == []
    assert page.size()[0] <= width, "nothing sticks out"
    drawn = page.evaluate(DRAWN)
    assert len(drawn) >= 9
    for plot in drawn:
        assert plot["paths"] >= 4, plot
        assert plot["width"] > 0.8 * min(width, 900), plot
        assert plot["height"] > 50, plot
        assert plot["says"], "there are words for those who do not see it"


async def test_hostile_texts_stay_text_and_break_nothing(tmp_path: Path, browser: Browser) -> None:
    await fill(tmp_path, **hostile_store())
    await hostile_ledger(tmp_path)
    file = await made(tmp_path)
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for width, scheme in product((1280, 375), schemes):
        page = browser.open(file.as_uri(), width=width, scheme=scheme)
        look(page, width)
        assert page.requests == [file.as_uri()], "nothing is asked for"
        assert page.evaluate("window.hacked === undefined")
    tags = set(page.evaluate("[...document.querySelectorAll('*')].map(one => one.tagName)"))
    assert {tag.lower() for tag in tags} <= {tag.lower() for tag in MAY_BE}
    attributes = page.evaluate(
        "[...document.querySelectorAll('*')].flatMap(one => [...one.attributes].map(a => [a.name, a.value]))"
    )
    assert not [name for name, _ in attributes if name.startswith("on") or name in {"src", "srcset", "action"}]
    assert not [value for name, value in attributes if name.endswith("href") and not value.startswith("#")]
    words = page.evaluate("document.body.textContent")
    for text in (HOSTILE[0], HOSTILE[6], "turned \u2039U+202E\u203aabc"):
        assert text.rstrip() in words
    assert "49" not in [word.strip("#") for word in words.split()], "no template in a template"
    source = file.read_text(encoding="utf-8")
    assert "\u202e" not in source
    assert "w" * 1_001 not in source
    assert "\u0301" * 5 not in source


async def test_the_page_is_dark_in_the_dark_and_light_on_paper_and_its_plots_follow(
    tmp_path: Path, browser: Browser
) -> None:
    await fill(tmp_path, **hostile_store())
    await hostile_ledger(tmp_path)
    page = browser.open((await made(tmp_path)).as_uri(), scheme="dark")
    paper, ink = (
        "getComputedStyle(document.body).backgroundColor",
        "getComputedStyle(document.querySelector('svg text')).fill",
    )
    dark = page.evaluate(f"[{paper}, {ink}]")
    page.media("light")
    light = page.evaluate(f"[{paper}, {ink}]")
    assert dark[0] == "rgb(20, 23, 27)"
    assert light[0] == "rgb(255, 255, 255)"
    assert dark[1] != light[1]
    page.media("dark", "print")
    page.resize(718)
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    look(page, 718)
    policy = page.evaluate("document.querySelector('meta[http-equiv]').content")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    assert len(page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(one => one.innerText)")) > 12


async def test_an_empty_period_has_a_page_that_says_so(tmp_path: Path, browser: Browser) -> None:
    await fill(tmp_path, posts=twenty())
    page = browser.open((await made(tmp_path, since="2026-10-01", until="2026-10-03")).as_uri())
    assert (page.said, page.requests[1:]) == ([], [])
    shown = page.evaluate("document.body.innerText")
    for text in ("No hour of the period is known", "No post of the period has a label", "The store has no coverage"):
        assert text in shown
    assert "NaN" not in shown
    told = text_table(await gather(load(None, {"data_dir": str(tmp_path)}), Wanted(since="2026-10-01")))
    assert "0 kept" not in told, "what nobody counted is not 0"


async def test_only_a_former_report_is_written_over(tmp_path: Path) -> None:
    await fill(tmp_path, posts=twenty())
    settings = load(None, {"data_dir": str(tmp_path)})
    file = tmp_path / "mine.html"
    file.write_text("my own page")
    with pytest.raises(Usage, match="is there and is no report of a period; name another file with --out"):
        await report(settings, Wanted(), file)
    assert file.read_text() == "my own page"
    with pytest.raises(Usage, match="is no folder; make it"):
        await report(settings, Wanted(), tmp_path / "none" / "x.html")
    file.unlink()
    for origin in ("firehose", "any"):
        await report(settings, Wanted(origin=origin), file)
        assert f"<bdi>{origin}</bdi>" in file.read_text()
    assert f'content="{GENERATOR}"' in file.read_text()
    assert file.stat().st_mode & 0o077 == 0, "hashtags and domains are others' words"
    assert sorted(one.name for one in tmp_path.iterdir() if "mine" in one.name) == ["mine.html"], "no half file is left"


async def test_the_command_writes_a_page_named_by_its_period_or_prints_the_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, here = tmp_path / "data", tmp_path / "here"
    data.mkdir()
    here.mkdir()
    await fill(data, posts=twenty())
    monkeypatch.chdir(here)
    told = command.run("report", "--data-dir", data, "--json", "--since", "2026-11-20")
    assert told.code == 0, told.err
    assert json.loads(told.out)["posts"]["counted"] == 19
    assert [one.name for one in here.iterdir()] == [], "no page, unless one is named"
    ended = command.run("report", "--data-dir", data, "--since", "2026-11-20", "--until", "2026-11-21T12:00:00Z")
    assert (ended.code, ended.err) == (0, "")
    assert [one.name for one in here.iterdir()] == ["report-2026-11-20-2026-11-21T1200.html"]
    assert ended.out.endswith("\n\nreport: report-2026-11-20-2026-11-21T1200.html\n")
    assert "0.432" in ended.out
    both = command.run("report", "--data-dir", data, "--json", "--out", "x.html", "--origin", "feed:today")
    assert json.loads(both.out)["posts"]["counted"] == 1
    assert (here / "x.html").exists()
    wrong = command.run("report", "--data-dir", tmp_path / "none")
    assert (wrong.code, "there is no store" in wrong.err) == (2, True)
