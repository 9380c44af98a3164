"""Articles on current events, with the installed command: which of them are in a prompt, seen by the model's server."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from civicsky.embedding import load
from civicsky.events.articles import read_line
from civicsky.research.gold import sample_rows
from support.command import end_when, environment, finish, query, run, start, until
from support.events import EVENTS, article, both, write
from support.led import led_relay
from support.news_model import NewsModel, Prompt, labels, news_model
from support.world import tid

BOUND = 0.55
MADE = "2026-11-22T12:00:00.000Z"
"""When the tests' posts were made, as their authors' programs say."""
LATER, OLD = "2026-11-22T12:00:01Z", "2026-11-01T00:00:00Z"
OTHERS = [row["text"] for row in sample_rows()][:60]


def news(folder: Path) -> Path:
    """All events' articles; of the last four only such as came out too late, or too early."""
    articles = [one for number in range(len(EVENTS) - 4) for one in both(number)]
    late = [one for number in range(len(EVENTS) - 4, len(EVENTS) - 2) for one in both(number, LATER)]
    late += [one for number in range(len(EVENTS) - 2, len(EVENTS)) for one in both(number, OLD)]
    write(folder / "a.jsonl", [*articles, "not json", *late])
    write(folder / "b.jsonl", articles)
    return folder


def collected(folder: Path, texts: list[str]) -> Path:
    """A data directory with these posts, of which nothing is labelled."""
    with led_relay() as relay:
        for number, text in enumerate(texts):
            relay.post(tid(number), text)
        process = start(
            "collect", "--relay", relay.url, "--data-dir", folder, worker__batch_seconds=0.05, filter__keep="all"
        )
        held = "SELECT count(*) FROM post"
        ended = end_when(process, lambda: query(folder / "journal.db", held) == [(len(texts),)], "all posts")
    assert ended.code == 0, ended.err
    return folder


def label(folder: Path, model: NewsModel, articles: Path | None, **settings: Any) -> Any:
    given: dict[str, Any] = {"events__folder": articles} if articles else {}
    ended = run(*command(folder, model), **{**given, **settings})
    assert ended.code == 0, ended.err
    return ended


def command(folder: Path, model: NewsModel) -> list[str | Path]:
    return ["label", "--data-dir", folder, "--model-url", model.url, "--model", "mock", "--drain"]


def documents(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(doc) for (doc,) in query(folder / "posts.db", "SELECT doc FROM labels")]


def spent(folder: Path) -> tuple[int, int]:
    """(calls, posts) that were counted."""
    ((calls, posts),) = query(folder / "ledger.db", "SELECT sum(calls), sum(posts) FROM spend")
    return calls, posts


@pytest.mark.parametrize("bound", [BOUND, 0.9])
def test_no_article_beyond_the_distance_or_later_than_the_post_is_in_any_prompt(tmp_path: Path, bound: float) -> None:
    posts = [post for event in EVENTS for post in event["posts"]] + OTHERS
    folder, articles = collected(tmp_path / "data", posts), news(tmp_path / "news")
    with news_model() as model:
        label(folder, model, articles, events__max_distance=bound)
    vectors, every = (
        load(),
        [(event[side], number) for number, event in enumerate(EVENTS) for side in ("left", "right")],
    )
    far = 1 - vectors.vectors(posts) @ vectors.vectors([f"{title}. {text}" for (title, text), _ in every]).T
    given = 0
    for prompt in model.questions:
        whole = json.dumps(prompt.body)
        for at, ((title, text), number) in enumerate(every):
            if title[:25] in whole or text[:25] in whole:
                given += 1
                assert far[posts.index(prompt.post)][at] <= bound + 1e-5, (prompt.post, title)
                assert number < len(EVENTS) - 4, "it came out too late, or too early"
        for side, told, _ in prompt.parts:
            assert side in {"left", "right"}
            assert told.endswith("2026-11-20")
    assert given > 10
    for one in documents(folder):
        for used in one.get("events", {}).get("articles", []):
            assert used["distance"] <= bound
            assert used["at"] <= MADE
    assert query(folder / "ledger.db", "SELECT count(*) FROM job WHERE state <> 'done'") == [(0,)]
    assert spent(folder) == (len(model.prompts), len(posts)), "each call is counted, and each post once"


def test_posts_that_name_an_event_are_asked_once_with_both_sides_and_others_without(tmp_path: Path) -> None:
    named = [event["posts"][0] for event in EVENTS[:6]]
    folder, articles = collected(tmp_path / "data", named + OTHERS[:10]), news(tmp_path / "news")
    with news_model() as model:
        label(folder, model, articles, events__summarise=False)
        asked = {prompt.post: prompt for prompt in model.questions}
        assert len(model.prompts) == len(asked) == len(named) + 10
    given = {post: asked[post].parts for post in named}
    assert all(given.values())
    assert sum(len(parts) == 2 for parts in given.values()) >= 4, "of some posts one side's article is too far"
    for event in EVENTS[:6]:
        parts = given[event["posts"][0]]
        assert len({side for side, _, _ in parts}) == len(parts)
        for side, told, text in parts:
            assert told == f"The {side} paper, 2026-11-20"
            assert text.startswith(event[side][0])
    assert all(not asked[text].context for text in OTHERS[:10])
    by_uri = {one["uri"].rpartition("/")[2]: one for one in documents(folder)}
    for number in range(len(named)):
        told = by_uri[tid(number)]["events"]
        assert (told["why"], len(told["articles"]), told["summaries"]) == ("named", len(given[named[number]]), [])
    assert "events" not in by_uri[tid(len(named))]
    (line,) = [one for one in run("status", "--data-dir", folder).out.splitlines() if one.startswith("articles ")]
    assert " of 2 files, the newest of 2026-11-22T12:00:01.000Z; 0 summaries; 1 line of no use" in line


def test_what_is_civic_and_unclear_is_asked_again_with_articles_and_the_second_answer_decides(tmp_path: Path) -> None:
    hints = [event["posts"][2] for event in EVENTS[:6]]
    folder, articles = collected(tmp_path / "data", hints), news(tmp_path / "news")
    with news_model() as model:
        label(folder, model, articles, events__max_distance=0.85, events__summarise=False)
        twice = [text for text in hints if sum(prompt.post == text for prompt in model.questions) == 2]
        assert twice
        assert len(model.prompts) == len(hints) + len(twice) == spent(folder)[0]
    posts = [json.loads(doc) for (doc,) in query(folder / "posts.db", "SELECT doc FROM posts")]
    for post in posts:
        mine = sorted((one for one in documents(folder) if one["uri"] == post["_id"]), key=lambda one: one["at"])
        leans = [one["fields"]["lean"]["value"] for one in mine]
        named = mine[0].get("events", {}).get("why") == "named"
        assert leans == (["unclear", "moderate"] if post["text"] in twice else ["moderate" if named else "unclear"])
        assert post["labels"]["civic"]["fields"]["lean"]["value"] == leans[-1]
        assert post["labels"]["civic"]["label_id"] == mine[-1]["_id"]
        if post["text"] in twice:
            first, second = mine
            assert "events" not in first
            assert (second["events"]["why"], first["prompt"]) == ("unclear", second["prompt"])
            assert first["context_hash"] is None
            assert second["context_hash"] == second["events"]["sha256"]


def test_what_is_not_civic_is_asked_once_though_articles_are_near_and_no_lean_is_told(tmp_path: Path) -> None:
    hints = [event["posts"][2] for event in EVENTS[:6]]
    folder, articles = collected(tmp_path / "data", hints), news(tmp_path / "news")
    with news_model(lambda _: {"civic": "not civic", "lean": "unclear", "us_politics": "no"}) as model:
        label(folder, model, articles, events__max_distance=0.85, events__summarise=False)
    assert sorted(prompt.post for prompt in model.prompts) == sorted(hints)


def test_a_kill_between_two_answers_loses_none_and_nothing_answered_is_asked_twice(tmp_path: Path) -> None:
    (hint,) = hints = [EVENTS[1]["posts"][2]]
    folder, articles = collected(tmp_path / "data", hints), news(tmp_path / "news")
    wide = {"events__folder": articles, "events__max_distance": 0.95}
    with news_model(lambda prompt: None if prompt.context else labels(prompt)) as model:
        process = start(*command(folder, model), **wide)
        until(lambda: any(prompt.context for prompt in model.questions), "the second question")
        process.send_signal(signal.SIGKILL)
        finish(process)
    kept = query(folder / "ledger.db", "SELECT answer ->> '$.fields.lean[0]' FROM label")
    assert kept == [("unclear",)], "the first answer was durable before the second question"
    before = len(model.summaries)
    assert spent(folder) == (1 + before, 0)
    with news_model() as model:
        label(folder, model, articles, events__max_distance=0.95)
        assert [prompt.post for prompt in model.prompts] == [hint], "neither the first question nor a summary again"
        assert model.questions[0].context
    assert spent(folder) == (2 + before, 1)


def test_each_side_of_an_event_is_summed_up_once_whoever_needs_it_and_after_a_restart(tmp_path: Path) -> None:
    posts = [*EVENTS[0]["posts"][:2], EVENTS[0]["posts"][0] + " !!"]
    folder = collected(tmp_path / "data", posts)
    articles = write(tmp_path / "news" / "a.jsonl", both(0)).parent
    with news_model() as model:
        label(folder, model, articles)
        assert len(model.summaries) == 2, "one a side"
        assert sorted(prompt.articles[0] for prompt in model.summaries) == sorted(
            f"{title}. {text}" for title, text in (EVENTS[0]["left"], EVENTS[0]["right"])
        )
        for prompt in model.questions:
            assert {text[:11] for _, _, text in prompt.parts} == {"Summed up: "}
        again = run(*command(folder, model), "--again", events__folder=articles)
        assert again.code == 0, again.err
        assert len(model.prompts) == 2 + len(posts), "the same question with the same articles is not asked again"
    for one in documents(folder):
        assert [len(part["articles"]) for part in one["events"]["summaries"]] == [1, 1]


def test_an_answer_is_never_taken_for_a_question_with_other_articles(tmp_path: Path) -> None:
    post = EVENTS[0]["posts"][0]
    folder = collected(tmp_path / "data", [post])
    file = write(tmp_path / "news" / "a.jsonl", both(0))
    with news_model() as model:
        label(folder, model, file.parent, events__summarise=False)
        write(file, [article(0, "right")])  # the other one is no longer used
        again = run(*command(folder, model), "--again", events__folder=file.parent, events__summarise=False)
        assert again.code == 0, again.err
        off = run(*command(folder, model), "--again")
        assert off.code == 0, off.err
        assert [sorted(side for side, _, _ in prompt.parts) for prompt in model.questions] == [
            ["left", "right"], ["right"], [],
        ]  # fmt: skip
    assert len(documents(folder)) == 3


def test_where_the_extra_is_not_installed_it_is_said_who_wants_it_and_what_to_install(tmp_path: Path) -> None:
    site = tmp_path / "site"  # all that is installed here, but for one package
    site.mkdir()
    for one in [one for path in sys.path if path.endswith("site-packages") for one in Path(path).iterdir()]:
        if not one.name.startswith("wordllama") and not (site / one.name).exists():
            (site / one.name).symlink_to(one)

    def said(program: str, *args: str | Path, **settings: Any) -> str:
        ended = subprocess.run(
            [sys.executable, "-S", "-c", program, *args],
            env={**environment(**settings), "PYTHONPATH": str(site)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode, ended.stdout
        return ended.stderr.splitlines()[-1].removeprefix("civicsky.errors.Usage: ")

    install = "in the folder with civicsky's source: pip install --require-hashes -r requirements"
    started = said(
        "from civicsky.__main__ import main; main()",
        "run", "--relay", "ws://127.0.0.1:9", "--data-dir", tmp_path / "data", "--model-url", "http://127.0.0.1:9/v1",
        "--model", "mock", events__folder=news(tmp_path / "news"),
    )  # fmt: skip
    assert started == f"civicsky: events.folder needs the extra `events`; {install}/events.txt"
    gate = said("from civicsky.embedding import load; load()")
    assert gate == f"the gate's model needs the extra `gate`; {install}/gate.txt"


def test_with_a_folder_in_which_nothing_fits_prompts_are_those_without_one(tmp_path: Path) -> None:
    sent: list[list[Prompt]] = []
    for name, texts in (("off", None), ("on", both(0))):
        folder = collected(tmp_path / name, OTHERS[:20])
        articles = write(tmp_path / f"news-{name}" / "a.jsonl", texts).parent if texts else None
        with news_model() as model:
            label(folder, model, articles)
            sent.append(sorted(model.prompts, key=str))
        assert (folder / "events.db").exists() == (name == "on")
    assert sent[0] == sent[1]


def test_which_articles_were_given_with_a_post_is_in_its_export(tmp_path: Path) -> None:
    posts = [EVENTS[0]["posts"][0], OTHERS[0]]
    folder, articles = collected(tmp_path / "data", posts), write(tmp_path / "news" / "a.jsonl", both(0)).parent
    with news_model() as model:
        label(folder, model, articles)
    told = {one["uri"]: one.get("events") for one in documents(folder)}
    assert sorted(map(bool, told.values())) == [False, True]
    rows, manifest, methods = exported(folder, tmp_path / "internal")
    assert {row["uri"]: json.loads(row["events"]) if row["events"] else None for row in rows} == told
    (given,) = (json.loads(row["events"]) for row in rows if row["events"])
    ids = [read_line(json.dumps(one).encode()).id for one in both(0)]
    assert sorted(one["id"] for one in given["articles"]) == sorted(ids), "so whoever has the folder knows which"
    assert manifest["tasks"]["civic"]["with_articles"] == 1
    assert "With 1 post of those exported the model was given reports on current events" in methods
    public, _, methods = exported(folder, tmp_path / "public", "--level", "public")
    assert sorted(row["events_why"] or "" for row in public) == ["", "named"]
    assert all("events" not in row for row in public), "distances go with the text"


def exported(folder: Path, out: Path, *options: str) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """Rows of the labels, the manifest, the methods' text on one line."""
    ended = run("export", "--data-dir", folder, "--format", "jsonl", "--out", out, *options)
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in (out / "labels.jsonl").read_text().splitlines()]
    return rows, json.loads((out / "manifest.json").read_text()), " ".join((out / "methods.md").read_text().split())


def test_summaries_that_were_paid_for_are_in_the_backup_and_not_asked_for_again_after_a_restore(tmp_path: Path) -> None:
    folder = collected(tmp_path / "data", EVENTS[0]["posts"][:1])
    articles = write(tmp_path / "news" / "a.jsonl", both(0)).parent
    with news_model() as model:
        label(folder, model, articles)
        assert len(model.summaries) == 2
        made = run("backup", tmp_path / "backups", "--data-dir", folder, "--json")
        assert made.code == 0, made.err
        shutil.rmtree(folder)
        ended = run("restore", json.loads(made.out)["path"], "--data-dir", folder)
        assert ended.code == 0, ended.err
        before = spent(folder)
        ended = run(*command(folder, model), "--again", events__folder=articles)
        assert ended.code == 0, ended.err
        assert len(model.prompts) == 3, "two summaries and a question, all before"
    assert spent(folder)[0] == before[0] == 3
    assert (folder / "events.db").stat().st_mode & 0o777 == 0o600


def test_summaries_count_in_the_budget_and_a_post_that_it_does_not_pay_for_waits(tmp_path: Path) -> None:
    folder = collected(tmp_path / "data", EVENTS[0]["posts"][:1])
    articles = write(tmp_path / "news" / "a.jsonl", both(0)).parent
    with news_model() as model:
        ended = run(*command(folder, model), events__folder=articles, label__budget_tokens=1)
        assert (ended.code, "today's budget is spent" in ended.err) == (1, True)
        assert (len(model.summaries), len(model.questions)) == (2, 0)
        assert query(folder / "ledger.db", "SELECT state FROM job") != [("done",)]
        label(folder, model, articles)
        assert (len(model.summaries), len(model.questions)) == (2, 1)
    assert query(folder / "ledger.db", "SELECT state FROM job") == [("done",)]


def test_a_folder_that_is_none_ends_with_one_line(tmp_path: Path) -> None:
    folder = collected(tmp_path / "data", ["A post."])
    with news_model() as model:
        ended = run(*command(folder, model), events__folder=tmp_path / "news")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "events.folder" in ended.err
