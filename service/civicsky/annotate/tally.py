"""What comes of the votes: rows of GOLD, how far annotators agree, and what the filter missed. Pure but for statistics.

GOLD has a row for each person and post, with the newest vote on the text that the post has now, and one by
`adjudicated` for each decision. It holds addresses and no text unless it is asked for.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from civicsky.annotate.draw import Kind
from civicsky.annotate.posts import Look
from civicsky.annotate.votes import Draw, Item as Drawn, Vote, newest
from civicsky.errors import Usage
from civicsky.model import did_of, format_time
from civicsky.research.gold import ADJUDICATED, Item
from civicsky.task import Field, Task

ENGLISH: Final = "vote_english"
"""A column of its own: yes or no. Where it is no, nothing else was asked."""
_ENGLISH: Final = Field(name=ENGLISH, values=("yes", "no"), description="Is the post in English?")
_NO_ESTIMATE: Final = (
    "drawn by {}, not uniformly: nothing about all posts can be estimated from it, and `civicsky estimate` refuses it"
)


class Found(NamedTuple):
    """A draw with all that is known of it now."""

    task: Task
    draw: Draw
    drawn: Sequence[Drawn]
    votes: Sequence[Vote]
    looks: Mapping[str, Look]

    def current(self, uri: str, vote: Vote) -> bool:
        """Whether a vote is on the text that the post has now; what is hidden or not held any more cannot be told."""
        look = self.looks.get(uri)
        return look is not None and (look.state == "not held" or look.version == vote.version)


def rows(found: Found, texts: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """GOLD, in the order of the posts. `texts`: to be written into it."""
    draw = found.draw
    about = {
        "draw": draw.id,
        "draw_kind": draw.kind,
        "draw_among": draw.among,
        "draw_origin": draw.origin,
        "draw_since": draw.since,
        "draw_until": draw.until,
        "draw_seed": draw.seed,
        "draw_posts": len(found.drawn),
        "draw_population": draw.population,
        "draw_at": format_time(draw.at),
    }
    by_uri = {one.uri: one for one in found.drawn}
    made: list[dict[str, Any]] = []
    for kind in ("vote", "adjudication"):
        for uri, by_person in newest(found.votes, kind).items():
            there = [(who, vote) for who, vote in by_person.items() if _counts(found, uri, vote)]
            if kind == "adjudication":
                there = sorted(there, key=lambda one: one[1].id)[-1:]
            for who, vote in there:
                one = by_uri[uri]
                judged = vote.answers or {}
                made.append(
                    {
                        "uri": uri,
                        "annotator": who if kind == "vote" else ADJUDICATED,
                        **({"text": texts[uri]} if texts and uri in texts else {}),
                        **{field.name: judged.get(field.name, "") for field in found.task.fields},
                        ENGLISH: "yes" if vote.english else "no",
                        "vote_by": who,
                        "vote_at": format_time(vote.at),
                        "vote_seconds": round(vote.seconds, 1),
                        "vote_note": vote.note,
                        "vote_task_version": vote.task_version,
                        "vote_task_sha256": vote.task_sha256,
                        **about,
                        "draw_p": one.p,
                        "draw_p_kept": one.p_kept,
                        "draw_p_sampled": one.p_sampled,
                        **({"draw_reject_reason": one.why} if one.why else {}),
                    }
                )
    return sorted(made, key=lambda row: (row["uri"], row["annotator"] == ADJUDICATED, row["annotator"]))


def want_names(task: Task) -> None:
    """Raises `Usage` when a field is called like a column of ours."""
    for field in task.fields:
        if field.name in {"text", "uri", "author", "annotator", "id", "draw"} or field.name.startswith(
            ("vote_", "draw_")
        ):
            raise Usage(
                f"task {task.name}: a field called {field.name!r} cannot be told from GOLD's own column; rename it"
            )


def texts_of(looks: Mapping[str, Look]) -> dict[str, str]:
    """What a model reads of the live posts."""
    return {uri: one.text.whole for uri, one in looks.items() if one.text is not None}


# ---- figures ---------------------------------------------------------------------------------------------------------


def summary(found: Found) -> dict[str, Any]:
    """Counts, without statistics."""
    draw = found.draw
    votes = [vote for vote in found.votes if vote.kind == "vote"]
    people = {vote.annotator for vote in found.votes if vote.kind != "adjudication"}
    latest = newest(found.votes)
    judged = {uri: by for uri, by in latest.items() if any(_counts(found, uri, vote) for vote in by.values())}
    return {
        "draw": {
            **draw._asdict(),
            "fields": json.loads(draw.fields),
            "about": json.loads(draw.about),
            "at": format_time(draw.at),
        },
        "posts": {
            "drawn": len(found.drawn),
            "judged": len(judged),
            **{
                state: n
                for state, n in Counter(_state(found, one.uri) for one in found.drawn).items()
                if state != "live"
            },
            "edited since": sum(_is_edited(found, uri, by) for uri, by in latest.items()),
        },
        "annotators": {
            who: {
                "posts": sum(who in by for by in judged.values()),
                "votes": sum(vote.annotator == who for vote in votes),
                "skips": sum(vote.annotator == who and vote.kind == "skip" for vote in found.votes),
            }
            for who in sorted(people)
        },
        "decisions": len(newest(found.votes, "adjudication")),
        "task_versions": dict(Counter(f"{vote.task_version} {vote.task_sha256[:8]}" for vote in votes)),
    }


def figures(found: Found) -> dict[str, Any]:
    """Agreement by field, and of rejects what was missed. Raises `Usage` without the extra `research`."""
    from civicsky.research.figures import gold_field, plain  # noqa: PLC0415

    items = as_items(found)
    fields = [field.name for field in found.task.fields]
    told = [plain(gold_field(items, field, fields)) for field in (*found.task.fields, _ENGLISH)]
    return {"fields": told, "missed": _missed(found, items) if found.draw.kind == "rejects" else None}


def as_items(found: Found) -> list[Item]:
    """The posts with their judgements, as `civicsky evaluate` would read them from GOLD."""
    items: dict[str, Item] = {}
    for row in rows(found):
        uri = row["uri"]
        item = items.setdefault(uri, Item(f"uri {uri}", 0, None, uri, did_of(uri)))
        names = [ENGLISH, *(field.name for field in found.task.fields)]
        item.judgements[row["annotator"]] = {name: row[name] for name in names if row[name]}
    return list(items.values())


def _missed(found: Found, items: Sequence[Item]) -> list[dict[str, Any]]:
    """Which share of the rejected posts is English, and which has which first value: of all, and by reason."""
    from civicsky.research.figures import plain  # noqa: PLC0415
    from civicsky.research.measure import weighted_share  # noqa: PLC0415

    first = found.task.fields[0]
    why = {one.uri: one.why for one in found.drawn}
    made = []
    for reason in ("", *sorted(set(why.values()) - {""})):
        mine = [item for item in items if not reason or why[item.uri or ""] == reason]
        known = [(item, item.truth(ENGLISH).value, item.truth(first.name)) for item in mine]
        english = [(item, value == "yes") for item, value, _ in known if value]
        said = [
            (item, english == "yes" and truth.value == first.values[0])
            for item, english, truth in known
            if english == "no" or (english == "yes" and truth.value)
        ]
        shares = [
            weighted_share([hit for _, hit in one], [1.0] * len(one), [item.author or "" for item, _ in one]).population
            for one in (english, said)
        ]
        made.append(
            {
                "reason": reason or "all",
                "judged": len(mine),
                "english": plain(shares[0]),
                "value": first.values[0],
                "english_and_value": plain(shares[1]),
                "undecided": len(mine) - len(said),
            }
        )
    return made


def _state(found: Found, uri: str) -> str:
    look = found.looks.get(uri)
    return look.state if look else "deleted"


def _counts(found: Found, uri: str, vote: Vote) -> bool:
    return _state(found, uri) not in {"deleted", "hidden"} and found.current(uri, vote)


def _is_edited(found: Found, uri: str, by_person: Mapping[str, Vote]) -> bool:
    return _state(found, uri) == "live" and not any(found.current(uri, vote) for vote in by_person.values())


# ---- for people ------------------------------------------------------------------------------------------------------


def as_text(told: Mapping[str, Any]) -> str:
    """`summary`, and `figures` where there are any."""
    draw, posts = told["draw"], told["posts"]
    lines = [draw_line(draw["id"], draw["kind"], draw["among"], posts["drawn"], draw["population"], draw["seed"])]
    if draw["kind"] not in {"uniform", "rejects"}:
        lines.append("  ! " + _NO_ESTIMATE.format(draw["kind"]))
    away = ", ".join(f"{n:,} {state}" for state, n in posts.items() if state not in {"drawn", "judged"} and n)
    lines.append(f"  {posts['judged']:,} judged" + (f"; left out: {away}" if away else ""))
    for who, one in told["annotators"].items():
        lines.append(f"  {who}: {one['posts']:,} posts, {one['votes']:,} votes, {one['skips']:,} skips")
    if told["decisions"]:
        lines.append(f"  {told['decisions']:,} decided by adjudication")
    if ties := max((field["outcomes"].get("tie", 0) for field in told.get("fields", ())), default=0):
        count = "tie counts" if ties == 1 else "ties count"
        lines.append(f"  ! {ties:,} {count} nowhere: `civicsky annotate --adjudicate NAME` decides")
    if len(told["task_versions"]) > 1:
        lines.append("  ! votes under several versions of the task file: " + ", ".join(told["task_versions"]))
    for field in told.get("fields", ()):
        lines += _field_lines(field)
    for one in told.get("missed") or ():
        lines += [
            f"rejected ({one['reason']}): {one['judged']:,} judged, {one['undecided']:,} of them not clearly",
            f"  in English                  {_shown(one['english'])}",
            f"  in English and {one['value']:12} {_shown(one['english_and_value'])}",
        ]
    return "\n".join(lines)


def draw_line(number: int, kind: Kind, among: str, drawn: int, population: int, seed: int) -> str:
    """A draw in one line."""
    of = "rejected posts with a kept record" if kind == "rejects" else f"{among} posts"
    return f"draw {number}: {kind}, {drawn:,} of {population:,} {of}, seed {seed}"


def _field_lines(field: Mapping[str, Any]) -> list[str]:
    outcomes = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in field["outcomes"].items() if name != "judged")
    classes = ", ".join(f"{value} {n:,}" for value, n in field["classes"].items())
    lines = [f"{field['name']}: {classes or 'nothing judged'}" + (f" ({outcomes})" if outcomes else "")]
    if several := field["annotators"]:
        lines.append(f"  agreement            {_shown(several['agreement'])}")
        lines.append(f"  Krippendorff's alpha {_shown(several['alpha'])}")
        for pair in several["pairs"]:
            lines.append(f"  Cohen's kappa        {_shown(pair['kappa'])}  {pair['first']}, {pair['second']}")
        if several["warning"]:
            lines.append(f"  ! {several['warning']}")
    return lines


def _shown(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return f"{'not defined' if figure['n'] else 'no data'}  n = {figure['n']:,}"
    return f"{figure['value']:.3f}  [{figure['low']:.3f}, {figure['high']:.3f}]  n = {figure['n']:,}"
