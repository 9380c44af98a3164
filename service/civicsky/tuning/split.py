"""Judged posts in three parts: training, validation, held-out; and the process that writes them into files.

GOLD is read by that process alone, which then ends. So the one that searches has never held a held-out post: their file
is named by its path and its SHA-256, and is not opened before the choice is on disk.

Posts of one author, posts of one text (see `gold.normalised`), and posts of nearly one text (`alike`) stay together,
also when one leads to the other: else an example might be a copy of a held-out post with a name changed.
"""

import asyncio
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

from civicsky.errors import BadInput, Failed, Usage
from civicsky.research.figures import truths
from civicsky.research.files import read_file, shown_in, write_whole
from civicsky.research.gold import Gold, Item, normalised, read_gold, without_shown
from civicsky.settings import Settings
from civicsky.task import Task

TRAINING: Final = "training"
VALIDATION: Final = "validation"
HELD_OUT: Final = "held-out"
SHARES: Final = {TRAINING: 0.3, VALIDATION: 0.3, HELD_OUT: 0.4}
"""Most for the last word, whose interval counts. Few training posts are needed: examples alone are drawn from them."""
SPLIT: Final = "split.json"
LEAST: Final = 10
"""Posts that a part must have: with fewer nothing can be told."""
ALIKE: Final = 0.75
"""Of all words of two texts the share that both must have to be nearly one."""
FEWEST: Final = 6
"""Different words of a text that is compared so: of shorter ones too many have the same."""
_WORD: Final = re.compile(r"[^\W_]+")
_MENTION: Final = re.compile(r"@[\w.:-]+")


class Order(NamedTuple):
    """What is to be split, and how."""

    gold: Path
    folder: Path
    """Where the files go; it is there."""
    task: Task
    field: str
    """The field that decides; each part gets about the same share of each of its values."""
    seed: int
    settings: Settings
    """Where texts are looked up that GOLD has only the addresses of."""


def split(order: Order) -> dict[str, Any]:
    """Have the files written by a process of its own, or checked if they are there; gives what `SPLIT` says of them.

    Raises `Usage` when the folder has another split, or GOLD has too few posts.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(_split, order).result()
        except BrokenProcessPool:
            raise Failed(f"{order.gold}: the process that splits it was killed; run the same command again") from None


def read_part(folder: Path, record: Mapping[str, Any], name: str, task: Task) -> Gold:
    """One part's posts. Raises `Failed` when its file is not the one that was written."""
    told = record["parts"][name]
    file = folder / str(told["file"])
    data = read_file(file)
    if hashlib.sha256(data).hexdigest() != told["sha256"]:
        raise Failed(f"{file}: not as it was written (SHA-256 in {SPLIT}); name another file with --out, to split anew")
    return read_gold(file.name, data, {field.name: field.values for field in task.fields})


# ---- which post goes where: pure -------------------------------------------------------------------------------------


def parts(posts: Sequence[tuple[Item, str]], seed: int) -> dict[str, list[Item]]:
    """Items by part, each item given with its value; in each part in GOLD's order.

    Groups are dealt in an order by the seed, large ones first, each to the part that then has the shares of values most
    like those wanted. So what is in one part has no author and no text in common with what is in another.
    """
    groups = _groups([item for item, _ in posts])
    total = Counter(value for _, value in posts)
    members: dict[int, list[int]] = {}
    for at, group in enumerate(groups):
        members.setdefault(group, []).append(at)
    dealt = list(members.values())
    Random(f"split {seed}").shuffle(dealt)  # noqa: S311  (nobody is to be kept from guessing it)
    dealt.sort(key=len, reverse=True)
    counts: dict[str, Counter[str]] = {name: Counter() for name in SHARES}
    found: dict[str, list[int]] = {name: [] for name in SHARES}
    for group_of in dealt:
        brings = Counter(posts[at][1] for at in group_of)
        name = min(SHARES, key=lambda part: _worse(counts[part], brings, total, SHARES[part]))
        counts[name] += brings
        found[name] += group_of
    return {name: [posts[at][0] for at in sorted(places)] for name, places in found.items()}


def _worse(has: Counter[str], brings: Counter[str], total: Counter[str], share: float) -> float:
    """How much farther a part is from what it should have, when it gets these: squares, relative to what is wanted."""
    return sum(
        ((has[value] + n - share * total[value]) ** 2 - (has[value] - share * total[value]) ** 2)
        / (share * total[value])
        for value, n in brings.items()
    )


def _groups(items: Sequence[Item]) -> list[int]:
    """A number for each item; items with one author or (nearly) one text, or by way of others, have the same."""
    leader = list(range(len(items)))

    def find(at: int) -> int:
        while leader[at] != at:
            leader[at] = leader[leader[at]]
            at = leader[at]
        return at

    known: dict[tuple[str, str], int] = {}
    for at, item in enumerate(items):
        keys = [("text", normalised(item.text or "")), ("author", item.author or "")]
        for key in (key for key in keys if key[1]):
            leader[find(at)] = find(known.setdefault(key, at))
    for one, other in alike([item.text or "" for item in items]):
        leader[find(one)] = find(other)
    return [find(at) for at in range(len(items))]


def alike(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Places of texts that are nearly one, in pairs; all, by way of others. Addresses and mentions are no words.

    Two texts that are have one of their rarest words in common, so few need be compared: Chaudhuri, Ganti and Kaushik
    (2006), ICDE, "A primitive operator for similarity joins in data cleaning".
    """
    words = [frozenset(_WORD.findall(_MENTION.sub(" ", normalised(text)))) for text in texts]
    count = Counter(word for one in words for word in one)
    places: dict[frozenset[str], int] = {}
    by_word: dict[str, list[int]] = {}
    for at in sorted(range(len(texts)), key=lambda at: len(words[at])):
        mine = words[at]
        if len(mine) < FEWEST:
            continue
        if mine in places:
            yield places[mine], at
            continue
        places[mine] = at
        rarest = sorted(mine, key=lambda word: (count[word], word))[: int(len(mine) * (1 - ALIKE) + 1e-9) + 1]
        for other in {other for word in rarest for other in by_word.get(word, ())}:
            if len(mine & words[other]) >= ALIKE * len(mine | words[other]):
                yield other, at
        for word in rarest:
            by_word.setdefault(word, []).append(at)


# ---- the process that reads GOLD -------------------------------------------------------------------------------------


def _split(order: Order) -> dict[str, Any]:
    os.umask(0o077)  # the files hold texts: their authors may delete them
    data = read_file(order.gold)
    wanted = {
        "gold": {"file": order.gold.name, "sha256": hashlib.sha256(data).hexdigest()},
        "task": hashlib.sha256(order.task.model_dump_json().encode()).hexdigest(),
        "field": order.field,
        "seed": order.seed,
        "shares": SHARES,
    }
    file = order.folder / SPLIT
    if file.exists():
        record: dict[str, Any] = json.loads(file.read_bytes())
        for name, value in wanted.items():
            if record[name] != value:
                raise Usage(f"{file}: was made from another {name}; name another file with --out")
        return record
    gold = read_gold(order.gold.name, data, {field.name: field.values for field in order.task.fields})
    if order.field not in gold.fields:
        raise Usage(f"{order.gold}: no column {order.field!r}; name a field that was judged with --field")
    items, shown = without_shown(asyncio.run(_with_texts(gold.items, order.settings)), shown_in([order.task]))
    known = [item for item in items if item.text is not None]
    (field,) = (field for field in order.task.fields if field.name == order.field)
    truth = {key: value for key, (_, value) in truths(known, field, gold.fields).items() if value is not None}
    posts = [(item, truth[item.key]) for item in known if item.key in truth]
    found = parts(posts, order.seed)
    _check(order, found, truth)
    record = wanted | {
        "rows": gold.rows,
        "items": len(gold.items),
        "left_out": {
            "shown": len(shown),
            "without_text": len(items) - len(known),
            "not_judged": len(known) - len(posts),
        },
        "without_author": sum(item.author is None for item, _ in posts),
        "parts": {name: _written(order.folder, name, part, gold, truth) for name, part in found.items()},
    }
    write_whole(file, json.dumps(record, indent=1) + "\n")
    return record


async def _with_texts(items: Sequence[Item], settings: Settings) -> list[Item]:
    """See `evaluate.with_texts`."""
    if all(item.text is not None for item in items):
        return list(items)
    from civicsky.appview import AppView  # noqa: PLC0415  (half a second that few need)
    from civicsky.research.evaluate import with_texts  # noqa: PLC0415

    appview = AppView(settings.appview)
    try:
        return await with_texts(items, settings, appview)
    except BadInput as error:
        raise Failed(f"public API: its answer cannot be used ({error.reason}); try again later") from None
    finally:
        await appview.close()


def _check(order: Order, found: Mapping[str, Sequence[Item]], truth: Mapping[str, str]) -> None:
    for name, items in found.items():
        values = {truth[item.key] for item in items}
        if len(items) < LEAST or len(values) < 2:  # noqa: PLR2004 - one value cannot be told from another
            raise Usage(
                f"{order.gold}: too few judged posts or authors: the part {name!r} has {len(items)} posts with "
                f"{len(values)} values of {order.field!r}, and needs {LEAST} with 2; judge more posts"
            )


def _written(folder: Path, name: str, items: Sequence[Item], gold: Gold, truth: Mapping[str, str]) -> dict[str, Any]:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for item in items for row in _rows(item, gold.fields))
    file = folder / f"{name}.jsonl"
    write_whole(file, text)
    return {
        "file": file.name,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "posts": len(items),
        "authors": len({item.author or f"\0{item.key}" for item in items}),
        "values": dict(sorted(Counter(truth[item.key] for item in items).items())),
    }


def _rows(item: Item, fields: Iterable[str]) -> Iterable[dict[str, Any]]:
    """GOLD's rows of an item again: one for each annotator."""
    own = {"id": item.key.removeprefix("id ")} if item.key.startswith("id ") else {}
    post = {"uri": item.uri, "text": item.text, "author": item.author}
    for who, said in item.judgements.items():
        yield own | post | {"annotator": who} | {name: said.get(name) for name in fields}
