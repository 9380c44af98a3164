"""What a person changes beside the stream, by short transactions, whether the service runs or not.

`erase` takes posts away for good, `recheck` looks posts up again, `again` has them labelled once more, `failed` lists
what could not be handled, shows it, and tries it once more.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from civicsky import backups, datadir
from civicsky.annotate.votes import forget_in
from civicsky.app import ledger_reader, lock_soon
from civicsky.appview import AppView
from civicsky.beside import followed, scrub
from civicsky.collecting import AHEAD_US
from civicsky.decode import decode
from civicsky.errors import BadInput, Failed, Held, Transient, Usage
from civicsky.journal import Journal, JournalReader
from civicsky.ledger import Ledger
from civicsky.lifecycle import Stop
from civicsky.metrics import Metrics
from civicsky.model import POSTS, Arrival, Batch, Frame, Key, format_time, parse_moment, post_uri
from civicsky.recheck import Rechecks, recheck as look_up_again
from civicsky.rounds import Rounds, Wish
from civicsky.settings import Settings
from civicsky.task import file_hash, load_tasks
from civicsky.worker import Pool

_POST: Final = re.compile(rf"at://(did:[^/]+)/{re.escape(POSTS)}/([^/]+)")
_PAGE: Final = re.compile(r"https://bsky\.app/profile/([^/]+)/post/([^/?#]+)")


class Erased(NamedTuple):
    """What `erase` did."""

    name: str
    """The DID or AT-URI."""
    posts: int
    """Posts that the journal held."""
    stored: bool
    """Whether ledger and store have followed already."""
    why: str
    """If not, why not."""


# ---- names -----------------------------------------------------------------------------------------------------------


async def named(settings: Settings, names: Sequence[str]) -> list[str]:
    """DIDs and AT-URIs for what a person types: these, handles, and web addresses of posts.

    Raises `Usage` for anything else, `Transient` when a handle cannot be looked up now.
    """
    appview = AppView(settings.appview)
    try:
        return [await _named(appview, name.strip()) for name in names]
    except BadInput:
        raise Failed("the public API's answer about a handle cannot be used; try again, or give the DID") from None
    finally:
        await appview.close()


async def _named(appview: AppView, name: str) -> str:
    if _POST.fullmatch(name) or re.fullmatch(r"did:[a-z]+:[A-Za-z0-9._:%-]+", name):
        return name
    if page := _PAGE.fullmatch(name):
        return post_uri(await _did(appview, page[1]), page[2])
    if re.fullmatch(r"@?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", name):
        return await _did(appview, name.removeprefix("@"))
    raise Usage(
        f"{name!r} names no account or post; give a DID (did:plc:...), a handle (name.bsky.social), "
        f"or a post (at://did/{POSTS}/rkey, or its address on bsky.app)"
    )


async def _did(appview: AppView, name: str) -> str:
    return name if name.startswith("did:") else await appview.resolve(name)


# ---- erase -----------------------------------------------------------------------------------------------------------


async def erase(settings: Settings, names: Sequence[str]) -> list[Erased]:
    """Remove accounts' posts or single posts everywhere, and never collect them again."""
    folder = datadir.existing(settings.data_dir)
    wanted = list(dict.fromkeys(await named(settings, names)))
    journal = await Journal.open(folder / datadir.JOURNAL, settings.journal)
    try:
        counts = {name: await journal.erase(name) for name in wanted}
        await scrub(journal, folder)
        await journal.database.truncate_log()
    finally:
        await journal.close()
    await forget_in(folder, wanted)
    why = await followed(settings, folder, {name.removeprefix("at://").partition("/")[0] for name in wanted})
    return [Erased(name, n, not why, why) for name, n in counts.items()]


def held_elsewhere(settings: Settings, names: Sequence[str]) -> list[str]:
    """Note in backups what was erased, and say a line of each that keeps the texts."""
    return backups.note_erased(datadir.existing(settings.data_dir), names)


# ---- recheck ---------------------------------------------------------------------------------------------------------


async def recheck(settings: Settings, names: Sequence[str], show: Callable[[int], None]) -> bool:
    """Look posts up again; all that the journal holds when no names are given.

    False when a running service does it. `show` is called with the number of posts looked up so far. Raises
    `Failed` when the public API cannot be asked: the round then goes on with the next start.
    """
    folder = datadir.existing(settings.data_dir)
    wanted = await named(settings, names)
    journal = await Journal.open(folder / datadir.JOURNAL, settings.journal)
    appview = AppView(settings.appview)
    try:
        rechecks = Rechecks(journal.database)
        await rechecks.ask(wanted)
        try:
            async with lock_soon(folder, "collect"):
                await look_up_again(rechecks, appview, _Shown(show), Stop(), delay_seconds=0, endless=False)
            await scrub(journal, folder)
        except Held as held:
            if held.brief:
                raise Failed(f"{held}; the posts are looked up when civicsky runs, or by `civicsky recheck`") from None
            return False
    except (BadInput, Transient) as error:
        raise Failed(f"{error}; what is left is looked up when civicsky runs, or by `civicsky recheck`") from None
    finally:
        await appview.close()
        await journal.close()
    return True


class _Shown(Metrics):
    """Counts that are shown."""

    def __init__(self, show: Callable[[int], None]) -> None:
        super().__init__()
        self._show = show

    def add(self, name: str, n: int = 1) -> None:
        """Count, and show."""
        super().add(name, n)
        self._show(self.counts["rechecked"])


# ---- label again -----------------------------------------------------------------------------------------------------


async def again(settings: Settings, names: Sequence[str], since: str, until: str, where: str) -> bool:
    """Have labelled posts asked about once more under these tasks (none: all of the settings).

    `since` and `until` are dates or times, `where` is FIELD=VALUE of the label that they have; empty means any. A round
    that was asked for in the same words and is not done goes on. False when a running service does it. Raises `Usage`.
    """
    folder = datadir.existing(settings.data_dir)
    files = load_tasks(settings.label.tasks)
    tasks, texts = {task.name: task for task, _ in files}, {task.name: text for task, text in files}
    for name in names:
        if name not in tasks:
            raise Usage(f"--task {name}: not among label.tasks ({', '.join(tasks)})")
    chosen = [tasks[name] for name in names or tasks]
    field, _, value = where.partition("=")
    for task in chosen if where else ():
        values = {one.name: one.values for one in task.fields}
        if value not in values.get(field, ()):
            known = "; ".join(f"{name}={'|'.join(some)}" for name, some in values.items())
            raise Usage(
                f"--where {where}: the task {task.name} has no such field or value; it has {known}"
                + ("; name the task that you mean with --task" if len(chosen) > 1 else "")
            )
    wish = Wish(_moment("--since", since), _moment("--until", until), field, value)
    asked = f"{settings.label.model} {settings.label.way} "
    ledger = await Ledger.open(folder / datadir.LEDGER)
    try:
        for task in chosen:
            question = file_hash(asked + texts[task.name])[:16]
            await Rounds(ledger.database).begin(task.name, wish._replace(question=question))
    finally:
        await ledger.close()
    return not datadir.holding(folder, "label").held


def _moment(flag: str, text: str) -> int | None:
    if not text:
        return None
    moment = parse_moment(text)
    if moment is None:
        raise Usage(f"{flag} {text}: neither a date (2026-11-22, UTC) nor a time (2026-11-22T16:00:00Z)")
    return moment


# ---- failed ----------------------------------------------------------------------------------------------------------


async def failed(folder: Path) -> list[dict[str, Any]]:
    """What could not be decoded, labelled or stored, each with an id, a kind and the reason."""
    folder = datadir.existing(folder)
    reader = await JournalReader.open(folder / datadir.JOURNAL)
    try:
        found: list[dict[str, Any]] = [
            {"id": f"frame:{row['id']}", "kind": "frame", "reason": row["reason"], "at": format_time(row["at"]),
             "did": row["did"], "host": row["host"], "after_seq": row["after_seq"], "bytes": len(row["bytes"])}
            for row in await reader.quarantined()
        ]  # fmt: skip
    finally:
        await reader.close()
    async with ledger_reader(folder) as ledger:
        if ledger:
            found += [{"id": f"{row['kind']}:{row['uri']}", **row} for row in await ledger.failed()]
    return found


async def failed_shown(folder: Path, name: str) -> dict[str, Any]:
    """One of them, with all that is known: for a frame its bytes, for a post its record's fields.

    Raises `Usage` when there is no such thing.
    """
    found = next((row for row in await failed(folder) if row["id"] == name), None)
    if found is None:
        raise Usage(f"nothing failed under {name!r}; `civicsky failed list` shows what did")
    reader = await JournalReader.open(datadir.existing(folder) / datadir.JOURNAL)
    try:
        if found["kind"] == "frame":
            (row,) = await reader.quarantined(int(name.partition(":")[2]))
            return {**found, "sha256": row["sha256"], "hex": row["bytes"].hex()}
        key = _key(found["uri"])
        post = (await reader.posts([key])).get(key)
        async with ledger_reader(folder) as ledger:
            raw = await ledger.raw(key) if ledger else []
        return {**found, "fields": post.fields if post else None, "answers": raw}
    finally:
        await reader.close()


async def retry(settings: Settings, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Try failed things once more, all when none is named; by kind (how many, how many of them will do now).

    Labels and documents are tried by the labelling half when it runs.
    """
    folder = datadir.existing(settings.data_dir)
    things = await failed(folder)
    unknown = set(names) - {row["id"] for row in things}
    if unknown:
        raise Usage(f"nothing failed under {min(unknown)!r}; `civicsky failed list` shows what did")
    wanted = [row for row in things if not names or row["id"] in names]
    frames = [int(row["id"].partition(":")[2]) for row in wanted if row["kind"] == "frame"]
    done = {"frame": (len(frames), await _retry_frames(settings, folder, frames))} if frames else {}
    posts = [row for row in wanted if row["kind"] != "frame"]
    if posts:
        ledger = await Ledger.open(folder / datadir.LEDGER)
        try:
            for row in posts:
                n = await ledger.retry(row["kind"], _key(row["uri"]))
                before = done.get(row["kind"], (0, 0))
                done[row["kind"]] = (before[0] + 1, before[1] + n)
        finally:
            await ledger.close()
    return done


async def _retry_frames(settings: Settings, folder: Path, numbers: Sequence[int]) -> int:
    """Decode and judge them again, in a worker as ever; gives how many were of use this time."""
    pool = Pool(settings.worker, settings.filter)
    await pool.start()
    reader = await JournalReader.open(folder / datadir.JOURNAL)
    journal = await Journal.open(folder / datadir.JOURNAL, settings.journal)
    good = 0
    try:
        for number in numbers:
            for row in await reader.quarantined(number):
                arrival = Arrival(1, row["host"], row["epoch"], 0, None, row["bytes"], row["at"])
                try:
                    event = decode(row["bytes"])
                    event = event._replace(time=min(event.time, row["at"] + AHEAD_US))
                except BadInput:
                    continue
                frame = Frame(arrival, event, event.outcome, event.name)
                good += await journal.retry(number, frame, await pool.judge(Batch([frame]).records()))
    finally:
        await reader.close()
        await journal.close()
    return good


def _key(uri: str) -> Key:
    did, _, rkey = uri.removeprefix("at://").partition(f"/{POSTS}/")
    return rkey, did


def as_text(rows: Sequence[dict[str, Any]]) -> str:
    """For people; everything that others chose is escaped."""
    lines = []
    for row in rows:
        about = " ".join(f"{name}={row[name]}" for name in ("did", "attempts", "after_seq", "bytes") if row.get(name))
        lines.append(f"{row['id']:28} {json.dumps(row['reason'])[1:-1]:20} {about}")
    return "\n".join(lines) or "nothing failed"
