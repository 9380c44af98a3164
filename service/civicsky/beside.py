"""What a command has done beside the service: by the service, when it runs, else by itself under the same locks.

Files in the inbox are imported, and ledger and store follow what a command wrote into the journal.
"""

import asyncio
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from civicsky import datadir, inbox, log
from civicsky.app import begin_run, catch_up, ledger_reader, lock_soon
from civicsky.errors import Failed, Held, Refused, Transient, Usage
from civicsky.feeds import Feeds, Outcomes
from civicsky.journal import Journal, JournalReader
from civicsky.lifecycle import Stop, happened
from civicsky.metrics import Metrics
from civicsky.settings import Settings
from civicsky.store import Store, open_existing
from civicsky.worker import Pool

WAIT_SECONDS: Final = 120.0
"""How long a command waits for the running service to tell the store."""
_WAIT_SECONDS: Final = 0.5
_OTHER: Final = "another command has been at work for long: the store follows when civicsky runs after it"


class Stored(NamedTuple):
    """What the store was told of posts."""

    counts: Mapping[str, int]
    why: str = ""
    """Why it was not told, or not of all."""
    good: bool = True


async def existing_store(settings: Settings, folder: Path) -> Store:
    """The store that the settings choose. Raises `Usage` when it is a file that is not there."""
    return await open_existing(settings.store, folder / datadir.POSTS)


def bars(unit: str) -> Progress:
    """Progress bars on standard error; nothing when that is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(30), MofNCompleteColumn(), TextColumn(unit))
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)


# ---- files in the inbox ----------------------------------------------------------------------------------------------


async def imported(settings: Settings, folder: Path, files: set[str]) -> dict[str, Outcomes]:
    """Have these files imported, by the running service or by ourselves; what became of the items of each.

    What a running service has not imported in time is left out.
    """
    waited = 0.0
    while files:
        try:
            with datadir.locked(folder, ("collect",), brief=True):
                await _import(settings, folder)
            return await _outcomes(folder, files)
        except Held:
            found = await _outcomes(folder, files)
            if len(found) == len(files) or waited >= settings.feeds.import_seconds:
                return found
        await asyncio.sleep(_WAIT_SECONDS)
        waited += _WAIT_SECONDS
    return {}


async def _import(settings: Settings, folder: Path) -> None:
    """Import all files that wait. The caller holds the lock `collect`."""
    journal = await Journal.open(folder / datadir.JOURNAL, settings.journal)
    try:
        await begin_run(folder, settings, journal)
        pool = Pool(settings.worker, settings.filter)
        await pool.start()
        feeds = feeds_in(journal, folder)
        with _usable(folder):
            await feeds.import_waiting(pool)
            async with ledger_reader(folder) as ledger:
                told = await ledger.position("snapshot") if ledger else 0
                await feeds.tidy(settings.feeds.inbox_days, settings.journal.post_days, told)
                # Where no service ever runs, nobody else keeps to the journal's retention.
                if ledger:
                    await journal.prune(await ledger.position(), ledger.settled)
    finally:
        await journal.close()


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Raise `Failed` when the inbox cannot be used."""
    try:
        yield
    except OSError as error:
        where = error.filename or folder / inbox.FOLDER
        raise Failed(f"{where}: {error.strerror}; make room, or mend the rights, and start again") from None


async def _outcomes(folder: Path, files: set[str]) -> dict[str, Outcomes]:
    if not (folder / datadir.JOURNAL).is_file():
        return {}  # the service is only starting
    reader = await JournalReader.open(folder / datadir.JOURNAL)
    try:
        rows = [row for row in await reader.fetches() if row["file"] in files and row["imported_at"] is not None]
    finally:
        await reader.close()
    return {row["file"]: Outcomes({(outcome, why): n for outcome, why, n in row["outcomes"]}) for row in rows}


async def stored_now(settings: Settings, folder: Path) -> Stored:
    """Let ledger and store follow."""
    metrics = Metrics()
    why, good = "", True
    try:
        await catch_up(folder, settings, metrics)
    except Held as held:
        why, good = (_OTHER, False) if held.brief else ("the running service tells the store", True)
    except (Transient, Refused, Usage) as error:
        why, good = f"it follows when civicsky runs next: {log.harmless(str(error))}", False
    names = {"written": "stored", "stale": "stale", "duplicate": "duplicate", "failed": "refused"}
    counts = {name: metrics.counts[count_of] for name, count_of in names.items()}
    return Stored(counts, why, good and not counts["failed"])


def feeds_in(journal: Journal, folder: Path) -> Feeds:
    """The imports of a data directory."""
    return Feeds(journal.database, folder, partial(ledger_reader, folder))


# ---- what was changed in the journal ---------------------------------------------------------------------------------


async def scrub(journal: Journal, folder: Path) -> None:
    """Take what was deleted out of fetched files; the running service does it itself."""
    with suppress(Held):
        async with lock_soon(folder, "collect"):
            with _usable(folder):
                await feeds_in(journal, folder).scrub()


async def followed(settings: Settings, folder: Path, dids: Collection[str]) -> str:
    """Let ledger and store follow the journal now; why they could not, or nothing."""
    if not (folder / datadir.LEDGER).is_file():
        return ""  # nothing was ever labelled or stored
    try:
        await catch_up(folder, settings, Metrics())
    except (Transient, Refused) as error:
        return str(error)
    except Held as held:
        return _OTHER if held.brief else await _wait_for_service(folder, dids)
    return ""


async def _wait_for_service(folder: Path, dids: Collection[str]) -> str:
    """The running service does it; wait until it has."""
    reader = await JournalReader.open(folder / datadir.JOURNAL)
    last = await reader.last_change()
    await reader.close()
    nobody = Stop().requested
    for _second in range(int(WAIT_SECONDS)):
        async with ledger_reader(folder) as ledger:
            if ledger and await ledger.position() >= last and not sum([await ledger.unstored(did) for did in dids]):
                return ""
        await happened(nobody, 1.0)
    return "the running service has not got there yet; it will"
