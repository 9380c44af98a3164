"""`civicsky dev train-gate`: a gate's file from posts that people have judged. See `gate` for what it does.

What is stated of it (recall, calls saved) is of posts that neither head nor threshold had seen, in a cross-validation
around the whole making; posts of one author, and copies of one text, never stand on both sides.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from civicsky import __version__
from civicsky.embedding import Embedding, load
from civicsky.errors import Usage
from civicsky.gate import Gate, Measured
from civicsky.model import format_time, now_us
from civicsky.research.files import read_file
from civicsky.research.gold import Gold, Item, normalised, read_gold
from civicsky.task import Task, file_hash, load_task

LEAST_AUTHORS = 20
"""Authors on each side: with fewer, ten folds hold hardly anybody, and no interval means anything."""


class Wanted(NamedTuple):
    """What is asked for."""

    task: str
    """Name or file."""
    gold: Path
    recall: float = 0.95
    field: str = ""
    """Empty: the task's first field."""
    value: str = ""
    """Empty: the field's first value."""
    seed: int = 0


class About(NamedTuple):
    """What a gate's file says that does not depend on what was learned."""

    made: str
    task: str
    task_version: str
    task_sha256: str
    field: str
    value: str
    gold_sha256: str
    seed: int
    recall_wanted: float


class Posts(NamedTuple):
    """What is trained on: one text each."""

    texts: list[str]
    authors: list[str]
    yes: list[bool]
    left_out: dict[str, int]
    """Of GOLD's items, by why."""


def train_gate(wanted: Wanted, out: Path, say: Callable[[str], None]) -> Gate:
    """Make the file. Raises `Usage`, also when the file is there already."""
    if not all(map(importlib.util.find_spec, ("numpy", "scipy"))):
        raise Usage(
            "train-gate needs the extra `research` besides `gate`; in the folder with civicsky's source: "
            "pip install --require-hashes -r requirements/research.txt"
        )
    if out.exists():
        raise Usage(f"{out} is there; a gate at work must not change under its name: name another file with --out")
    task, text = load_task(wanted.task)
    field, value = _looked_for(task, wanted)
    gold = _read(wanted.gold, task)
    posts = posts_of(gold, field, value)
    now = f"{format_time(now_us())} by civicsky {__version__}"
    about = About(now, task.name, task.version, file_hash(text), field, value, gold.sha256, wanted.seed, wanted.recall)
    gate = made(posts, load(), about)
    try:
        with out.open("x", encoding="utf-8") as stream:
            stream.write(gate.text())
    except OSError as error:
        raise Usage(f"{out}: {error.strerror}; name another file with --out") from None
    for why, n in posts.left_out.items():
        say(f"{n:,} of GOLD's {len(gold.items):,} posts left out: {why}")
    return gate


def made(posts: Posts, embedding: Embedding, about: About) -> Gate:
    """A whole gate; `about` has what does not depend on the posts. Raises `Usage` when there are too few."""
    import numpy as np  # noqa: PLC0415

    from civicsky.research import fitting  # noqa: PLC0415

    _check_enough(posts, about)
    vectors, yes = embedding.vectors(posts.texts).astype(np.float64), np.array(posts.yes)
    head, bound = fitting.train(vectors, yes, posts.authors, about.recall_wanted, about.seed)
    passes = fitting.held_out(vectors, yes, posts.authors, about.recall_wanted, about.seed)
    authors = np.array(posts.authors)
    return Gate(
        **about._asdict(),
        model=embedding.identity.name,
        model_version=embedding.identity.version,
        model_sha256=embedding.identity.sha256,
        gold_posts=len(yes),
        gold_positive=int(yes.sum()),
        recall=_measured(passes[yes].tolist(), authors[yes].tolist()),
        skipped=_measured((~passes).tolist(), posts.authors),
        threshold=_below(bound),
        bias=head.bias,
        weights=tuple(head.weights.tolist()),
    )


def posts_of(gold: Gold, field: str, value: str) -> Posts:
    """The items that can be trained on: judged, with a text, each text once."""
    found, seen, left_out = Posts([], [], [], {}), set[str](), dict[str, int]()
    for item in gold.items:
        truth = item.truth(field)
        why = _why_not(item, truth.value, seen)
        if why:
            left_out[why] = left_out.get(why, 0) + 1
            continue
        assert item.text is not None
        seen.add(normalised(item.text))
        found.texts.append(item.text)
        found.authors.append(item.author or item.key)
        found.yes.append(truth.value == value)
    return found._replace(left_out=left_out)


def _why_not(item: Item, value: str | None, seen: set[str]) -> str:
    if item.text is None:
        return "no text (`civicsky hydrate` fills it in)"
    if value is None:
        return "not judged, or not clearly"
    return "a text that was there before" if normalised(item.text) in seen else ""


def _check_enough(posts: Posts, about: About) -> None:
    from civicsky.research.fitting import least  # noqa: PLC0415

    needed = max(LEAST_AUTHORS, 2 * least(about.recall_wanted))
    name = f"{about.field} = {about.value}"
    for what, wants in ((f"with {name}", True), (f"without {name}", False)):
        own = [author for author, yes in zip(posts.authors, posts.yes, strict=True) if yes is wants]
        if len(own) < needed:
            raise Usage(
                f"GOLD has {len(own):,} posts {what}, and a recall of {about.recall_wanted:g} needs {needed:,} or more;"
                " label more, or ask for a lower --recall"
            )
        if len(set(own)) < LEAST_AUTHORS:
            raise Usage(
                f"GOLD's posts {what} are of {len(set(own)):,} authors, and {LEAST_AUTHORS} or more are needed to tell "
                "what holds for others; label posts of more authors"
            )


def _measured(hits: list[bool], authors: list[str]) -> Measured:
    from civicsky.research.measure import weighted_share  # noqa: PLC0415

    figure = weighted_share(hits, [1.0] * len(hits), authors).population
    assert figure.value is not None
    return Measured(value=figure.value, low=figure.low, high=figure.high, n=figure.n, authors=figure.clusters)


def _below(bound: float) -> float:
    """The threshold to six digits, as probabilities are compared; downwards, so that the post it is of still passes."""
    return int(bound * 1e6) / 1e6


def _looked_for(task: Task, wanted: Wanted) -> tuple[str, str]:
    fields = {field.name: field for field in task.fields}
    name = wanted.field or task.fields[0].name
    if name not in fields:
        raise Usage(f"--field {name}: the task {task.name!r} has {', '.join(fields)}")
    if fields[name].only_if:
        raise Usage(f"--field {name}: only some posts have it; a gate looks for a value of a field that all have")
    value = wanted.value or fields[name].values[0]
    if value not in fields[name].values:
        raise Usage(f"--value {value}: the field {name!r} has {', '.join(fields[name].values)}")
    return name, value


def _read(file: Path, task: Task) -> Gold:
    return read_gold(file.name, read_file(file), {field.name: field.values for field in task.fields})


def as_text(gate: Gate, out: Path) -> str:
    """For people."""
    recall, skipped = gate.recall, gate.skipped
    lines = [
        f"gate {gate.version} for the task {gate.task}, version {gate.task_version}: {gate.field} = {gate.value}",
        f"trained on       {gate.gold_posts:,} posts, {gate.gold_positive:,} of them with it; seed {gate.seed}",
        f"model            {gate.model}, version {gate.model_version}",
        f"threshold        {gate.threshold:.6f}",
        f"recall           {_said(recall)}; wanted {gate.recall_wanted:g}",
        f"calls saved      {_said(skipped)}, in GOLD's mix of posts",
    ]
    if not recall.low <= gate.recall_wanted <= recall.high and recall.value < gate.recall_wanted:
        lines.append("! the recall that was wanted lies above the interval: do not use this gate")
    return "\n".join([*lines, f"{out} is to be named in gate.file"])


def _said(one: Measured) -> str:
    return f"{one.value:.3f}  [{one.low:.3f}, {one.high:.3f}]  n = {one.n:,} ({one.authors:,} authors), held out"
