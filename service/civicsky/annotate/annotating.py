"""`civicsky annotate`: finds or makes the draw, opens the desk to one person, and writes GOLD of the votes.

The service may run meanwhile or not: its files are only read, and votes go into a file of their own.
"""

import asyncio
import json
import os
import secrets
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from civicsky import datadir
from civicsky.annotate import tally
from civicsky.annotate.desk import Desk
from civicsky.annotate.draw import MOST, Among, Drawing, Kind
from civicsky.annotate.httpd import Keys, application, listen
from civicsky.annotate.posts import Look, Population, Posts, Window, opened
from civicsky.annotate.sitting import keys_of, name_of
from civicsky.annotate.votes import Draw, Votes
from civicsky.document import ANY, FEED, FIREHOSE
from civicsky.errors import Failed, Usage
from civicsky.model import format_time, now_us, parse_moment, parse_time
from civicsky.research.files import write_whole
from civicsky.settings import Settings
from civicsky.task import Task, file_hash, load_task
from civicsky.typed import moment_of
from civicsky.watch.web import answering

POSTS: Final = 300
"""Posts of a draw unless another number is wanted: a share of .5 is then known to within .06."""
Say = Callable[[str], None]


class Wanted(NamedTuple):
    """What is asked for. None: as the draw that there is, or by default."""

    annotator: str = ""
    adjudicator: str = ""
    task: str = ""
    kind: Kind = "uniform"
    among: Among | None = None
    origin: str | None = None
    since: str | None = None
    until: str | None = None
    posts: int | None = None
    seed: int | None = None
    draw: int | None = None
    new: bool = False
    port: int = 0


class Done(NamedTuple):
    """What `export` and `list` give."""

    found: Any
    text: str


# ---- labelling -------------------------------------------------------------------------------------------------------


async def annotate(settings: Settings, wanted: Wanted, say: Say) -> None:
    """Open the desk until SIGINT or SIGTERM. `say` is told the address, and in the end how far it is."""
    if bool(wanted.annotator) == bool(wanted.adjudicator):
        raise Usage("who labels? give --annotator NAME, or --adjudicate NAME to decide where others differ")
    adjudicates = bool(wanted.adjudicator)
    person = name_of(*(("--adjudicate", wanted.adjudicator) if adjudicates else ("--annotator", wanted.annotator)))
    folder, task, sha256 = _place(settings, wanted)
    os.umask(0o077)
    votes = await Votes.open(folder)
    try:
        rejects = await _is_of_rejects(votes, wanted)
        async with opened(settings, folder, rejects=rejects) as posts:
            draw = await _draw(votes, posts, task, sha256, wanted, say)
            desk = Desk(votes, posts, draw, (task, sha256), person, adjudicates=adjudicates)
            await desk.prepare()
            await _serve(desk, wanted.port, say)
            say(f"{person}: {await desk.told()}")
    finally:
        await votes.close()


async def _serve(desk: Desk, port: int, say: Say) -> None:
    listener = listen(port)
    taken = listener.getsockname()[1]

    def invite(key: str) -> None:
        say(f"open http://127.0.0.1:{taken}/#{key} in a browser of this machine; it opens once, Ctrl-C ends")

    with _ended() as ended:  # before the address is told: whoever reads it may end us at once
        keys = Keys(taken, invite)
        async with answering(listener, application(desk, keys)) as server:
            waiting = asyncio.create_task(ended.wait(), name="annotate-end")
            await asyncio.wait({waiting, server}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if server.done():
                server.result()
                raise Failed("the page's server ended by itself; start again: no vote is lost")


@contextmanager
def _ended() -> Iterator[asyncio.Event]:
    """Set by SIGINT and SIGTERM."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    try:
        yield ended
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _place(settings: Settings, wanted: Wanted) -> tuple[Path, Task, str]:
    """The data directory, the task, and the SHA-256 of its file."""
    datadir.refuse_network(settings.data_dir.absolute())
    folder = datadir.existing(settings.data_dir)
    task, text = load_task(wanted.task or settings.label.tasks[0])
    keys_of(task)
    tally.want_names(task)
    return folder, task, file_hash(text)


# ---- draws -----------------------------------------------------------------------------------------------------------


async def _is_of_rejects(votes: Votes, wanted: Wanted) -> bool:
    if wanted.draw is None:
        return wanted.kind == "rejects"
    return any(draw.id == wanted.draw and draw.kind == "rejects" for draw in await votes.draws())


async def _draw(votes: Votes, posts: Posts, task: Task, sha256: str, wanted: Wanted, say: Say) -> Draw:
    """The draw to work on: the one that is named, else the newest of this kind, else a new one."""
    known = await votes.draws(task.name)
    mine = [draw for draw in known if draw.id == wanted.draw] if wanted.draw else _alike(known, wanted)
    if wanted.draw and not mine:
        raise Usage(f"--draw {wanted.draw}: task {task.name} has no such draw; `civicsky annotate list` names them")
    if mine and not wanted.new:
        draw = mine[-1]
        _want_same(draw, wanted)
    else:
        if wanted.adjudicator:
            raise Usage(f"task {task.name} has no draw of this kind, so there is nothing to decide; label first")
        draw = await _drawn(votes, posts, task, sha256, wanted, known[-1].id if known else 0)
    _want_task(draw, task, sha256, say)
    items = await votes.items(draw.id)
    say(tally.draw_line(draw.id, draw.kind, draw.among, len(items), draw.population, draw.seed))
    await _want_even(posts, draw, say)
    return draw


async def _want_even(posts: Posts, draw: Draw, say: Say) -> None:
    """Say when rejected posts of this draw had unequal chances to be in it."""
    if draw.kind != "rejects":
        return
    found = await posts.kept_shares(parse_time(draw.since) or 0, parse_time(draw.until) or now_us())
    if len(found) > 1:
        told = ", ".join(f"{share:g} from {format_time(began)}" for began, share in found)
        say(
            f"note: journal.reject_sample changed within this draw ({told}), so its posts had unequal chances and its "
            "shares are not those of all rejected posts; for equal chances draw anew: "
            f"--new --since {_just_after(format_time(found[-1][0]))}"
        )


def _alike(known: Sequence[Draw], wanted: Wanted) -> list[Draw]:
    return [draw for draw in known if draw.kind == wanted.kind and wanted.among in {None, draw.among}]


def _want_same(draw: Draw, wanted: Wanted) -> None:
    """Raises `Usage` when something is asked for that this draw has otherwise."""
    given = {"--posts": wanted.posts, "--seed": wanted.seed, "--origin": wanted.origin, "--among": wanted.among}
    is_so = {"--posts": draw.wanted, "--seed": draw.seed, "--origin": draw.origin, "--among": draw.among}
    for flag, value in given.items():
        if value is not None and value != is_so[flag]:
            raise Usage(
                f"{flag} {value}: draw {draw.id} has {is_so[flag]}; leave it out, or add --new for another draw"
            )
    about = json.loads(draw.about)
    for flag, value in {"since": wanted.since, "until": wanted.until}.items():
        if value and value != about[flag]:
            raise Usage(f"--{flag} {value}: draw {draw.id} has {about[flag] or 'none'}; leave it out, or add --new")


def _want_task(draw: Draw, task: Task, sha256: str, say: Say) -> None:
    """Raises `Usage` when the task now asks another question than when the posts were drawn."""
    if draw.fields != _fields(task):
        raise Usage(
            f"task {task.name}: its fields are not those of draw {draw.id} (version {draw.task_version}); "
            "name that task file, or add --new for another draw"
        )
    if draw.task_sha256 != sha256:
        say(f"note: the task file changed since draw {draw.id} was made; each vote tells under which one it was given")


async def _drawn(votes: Votes, posts: Posts, task: Task, sha256: str, wanted: Wanted, after: int) -> Draw:
    n = wanted.posts or POSTS
    if n > MOST:
        raise Usage(f"--posts {n}: more than {MOST:,}; make several draws")
    among: Among = wanted.among or "labelled"
    origin = ANY if wanted.kind == "rejects" else wanted.origin or FIREHOSE
    if among == "collected" and wanted.kind in {"uncertainty", "disagreement"}:
        raise Usage(f"--among collected: posts without a label cannot be drawn by {wanted.kind}; leave one of them out")
    if origin not in {FIREHOSE, ANY} and not (origin.startswith(FEED) and origin != FEED):
        raise Usage(f"--origin {origin}: give firehose, any, or feed:NAME with the feed's name in the settings")
    seed = wanted.seed if wanted.seed is not None else secrets.randbelow(2**31)
    drawing = Drawing(seed, n)
    await posts.draw(Population(task.name, wanted.kind, among, origin, _window(wanted)), drawing)
    picks = drawing.drawn()
    if not picks:
        raise Usage(f"there is nothing to draw: {_WHY_NONE[wanted.kind if among == 'labelled' else 'collected']}")
    made = Draw(
        0, task.name, task.version, sha256, _fields(task), wanted.kind, among, origin, drawing.first,
        _just_after(drawing.last), seed, n, drawing.population,
        json.dumps({"since": wanted.since or "", "until": wanted.until or ""}), now_us(),
    )  # fmt: skip
    made = made._replace(since=_moment_text(wanted.since) or made.since, until=_moment_text(wanted.until) or made.until)
    return await votes.add(made, picks, unless_after=None if wanted.new else after)


_WHY_NONE: Final = {
    "uniform": "no live post of this period and origin has a label of the task; label first, or add --among collected",
    "collected": "no live post of this period and origin is in the store; look at both",
    "uncertainty": "no label of this period and origin tells a probability; `civicsky evaluate` says which ways do",
    "disagreement": "no labels of a post by two models, prompts or ways differ; `civicsky label --again` makes more",
    "rejects": "no record of a rejected post of this period is kept; see journal.reject_sample, journal.reject_days",
}


def _window(wanted: Wanted) -> Window:
    return moment_of("--since", wanted.since), moment_of("--until", wanted.until)


def _moment_text(text: str | None) -> str:
    moment = parse_moment(text) if text else None
    return "" if moment is None else format_time(moment)


def _just_after(time: str) -> str:
    """The next millisecond: ends are not included."""
    return format_time((parse_time(time) or 0) + 1000)


def _fields(task: Task) -> str:
    """What a vote depends on."""
    return json.dumps([[field.name, field.values, field.only_if] for field in task.fields], ensure_ascii=False)


# ---- afterwards ------------------------------------------------------------------------------------------------------


async def listed(settings: Settings) -> Done:
    """The draws that there are, and who voted how often."""
    folder = datadir.existing(settings.data_dir)
    if not (folder / datadir.ANNOTATIONS).is_file():
        return Done([], "nobody labelled by hand here yet")
    votes = await Votes.look(folder)
    told, lines = [], []
    try:
        for draw in await votes.draws():
            items, cast = await votes.items(draw.id), await votes.of(draw.id)
            people = {vote.annotator: 0 for vote in cast}
            for uri in {item.uri for item in items}:
                for who in {vote.annotator for vote in cast if vote.uri == uri and vote.english is not None}:
                    people[who] += 1
            told.append({**draw._asdict(), "at": format_time(draw.at), "posts": len(items), "people": people})
            lines.append(
                f"{tally.draw_line(draw.id, draw.kind, draw.among, len(items), draw.population, draw.seed)}; "
                f"task {draw.task} {draw.task_version}, {format_time(draw.at)}"
            )
            lines += [f"  {who}: {n:,} of {len(items):,} posts" for who, n in sorted(people.items())]
    finally:
        await votes.close()
    return Done(told, "\n".join(lines) or "nobody labelled by hand here yet")


async def export(settings: Settings, wanted: Wanted, out: Path | None, say: Say, *, with_text: bool) -> Done:
    """Write GOLD of a draw, and reckon how far its annotators agree.

    All posts are looked up first: what was said of deleted ones is forgotten, and hidden ones are left out.
    """
    folder, task, _ = _place(settings, wanted)
    if not (folder / datadir.ANNOTATIONS).is_file():
        raise Usage("nobody labelled by hand here yet; `civicsky annotate --annotator NAME` does")
    votes = await Votes.open(folder)
    try:
        found = await _found(settings, folder, votes, task, wanted, say)
    finally:
        await votes.close()
    rows = tally.rows(found, tally.texts_of(found.looks) if with_text else None)
    if not rows:
        raise Usage(f"draw {found.draw.id}: nobody voted on a post that is still there; label first")
    file = out or Path(f"gold-{task.name}-{found.draw.id}.jsonl")
    _write(file, rows)
    told: dict[str, Any] = {"file": str(file), "rows": len(rows), **tally.summary(found)}
    try:
        told |= tally.figures(found)
    except Usage as error:
        say(f"no figures of agreement: {error}")
    return Done(told, f"{file}: {len(rows):,} judgements\n{tally.as_text(told)}")


async def _found(settings: Settings, folder: Path, votes: Votes, task: Task, wanted: Wanted, say: Say) -> tally.Found:
    known = await votes.draws(task.name)
    mine = [draw for draw in known if draw.id == wanted.draw] if wanted.draw else _alike(known, wanted)
    if not mine:
        raise Usage(f"task {task.name} has no such draw; `civicsky annotate list` names them, --draw chooses one")
    draw = mine[-1]
    items = await votes.items(draw.id)
    there = [item.uri for item in items if item.gone is None]
    async with opened(settings, folder, rejects=draw.kind == "rejects") as posts:
        looks: dict[str, Look] = await posts.look(there, rejects=draw.kind == "rejects")
        await _want_even(posts, draw, say)
    await votes.forget([uri for uri, look in looks.items() if look.state == "deleted"])
    return tally.Found(task, draw, items, await votes.of(draw.id), looks)


def _write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A new file, for its owner alone. What is there may be somebody's work.

    A kill leaves it empty, and so of no use to anybody, or whole.
    """
    os.umask(0o077)
    try:
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        raise Usage(f"{file} is there already; name another with --out, or move it away") from None
    except OSError as error:
        raise Usage(f"{file}: {error.strerror}; name another with --out") from None
    try:
        write_whole(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    except BaseException:
        file.unlink(missing_ok=True)
        raise
