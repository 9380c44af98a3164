"""A paragraph for the methods section of a paper, from an export's manifest alone. Pure.

A sentence whose facts are not there is left out.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

METHODS: Final = "methods.md"
_WIDTH: Final = 126


def methods_text(found: Mapping[str, Any]) -> str:
    """A paragraph for a paper, from the manifest alone. What is not known is left out."""
    labels = [] if found["level"] == "restricted" else [_labels(found, *item) for item in found["tasks"].items()]
    sentences = [_stream(found), _kept(found), *labels, _weights(found), *_gone(found), *_choice(found)]
    left = (
        "Not in the store, and so not above: how good the labels are (`civicsky evaluate`), drift (`civicsky status`), "
        "shares with their intervals (`civicsky estimate`), and what was rejected (`civicsky status`)."
    )
    paragraph = " ".join(filter(None, sentences))
    return f"# Methods\n\n{filled(paragraph)}\n\n{filled(left)}\n"


def _stream(found: Mapping[str, Any]) -> str:
    held = found["coverage"]
    versions = sorted({run["version"] for run in found["runs"] if run["version"]})
    if not held["from"] or held["share_held"] is None:
        return ""
    by = f" with civicsky {_list(versions)}" if versions else ""
    kinds = {kind: n for kind, n in held["seconds"].items() if kind != "held" and n >= 1}
    rest = "; the rest was " + _list([f"{kind} ({n:,.0f} s)" for kind, n in kinds.items()]) if kinds else ""
    return (
        f"We collected Bluesky's public stream from {_day(held['from'])} to {_day(held['until'])}{by}, which held "
        f"{held['share_held']:.2%} of that time{rest}."
    )


def _kept(found: Mapping[str, Any]) -> str:
    posts, filters = found["posts"], [name for name in found["filters"] if name != "None"]
    by = f" by the filter {_list(filters)}" if filters else ""
    text = (
        f"The data are of {posts['collected']:,} posts that were kept{by} and were still there on {_day(found['at'])}"
    )
    feeds = found["origins"].get("feed", 0)
    only = feeds - found["origins"].get("both", 0)
    if feeds:
        text += (
            f"; {feeds:,} of those exported were shown by a feed, {only:,} by a feed alone, and these are "
            "no sample of the network"
        )
    low, high = found["probabilities"]["p_kept"] or (1, 1)
    shed = f" Posts were kept with probabilities from {low:.3g} to {high:.3g}." if low < 1 else ""
    return f"{text}.{shed}"


def _labels(found: Mapping[str, Any], name: str, task: Mapping[str, Any]) -> str:
    if not task["drawn"] or found["asked"]["model"] or found["asked"]["prompt"]:
        return ""
    low, high = task["p_sampled"] or (None, None)
    text = f"For the task {name}, {task['drawn']:,} of these were "
    if found["origins"].get("feed"):  # no lot was drawn for what a feed showed, if it was labelled for certain
        text += "taken" if low == high else "drawn by chance or, where a feed showed them, taken for certain"
    else:
        text += "drawn" if low is None or low == high else "drawn by chance"
    if low is not None:
        text += (
            f", each with probability {low:.3g}"
            if low == high
            else f", with probabilities from {low:.3g} to {high:.3g}"
        )
    text += f", and {task['labelled']:,} labelled{_made(found, name)}."
    if gated := task.get("gated", 0):
        text += (
            f" A gate, a small model of its own, kept {_posts(gated)} from the labelling model; of the posts under its "
            "threshold a random share was labelled all the same and stands for the others."
        )
    if task["unlabelled"]:
        missing = sum(task["unlabelled"].values())
        most = max(task["unlabelled"], key=lambda reason: task["unlabelled"][reason])
        text += f" {missing:,} ({missing / task['drawn']:.1%}) could not be labelled, most often because of {most}."
    return text


def _made(found: Mapping[str, Any], name: str) -> str:
    """Who labelled, and how."""
    makers = [one for one in found["labels_made_by"] if one["task"] == name]
    if not makers or any(one["task"] == "others" for one in found["labels_made_by"]):
        return ""
    parts = []
    for model in dict.fromkeys(one["model"] for one in makers):
        mine = [one for one in makers if one["model"] == model]
        facts = [
            *_facts("fingerprint", [one["fingerprint"] for one in mine]),
            *_facts("way", [one["way"] for one in mine]),
            *_facts("version of the task", [one["task_version"] for one in mine]),
            *_facts("prompt", [one["prompt"] and one["prompt"][:8] for one in mine]),
            *([f"{sum(one['posts'] for one in mine):,} posts exported"] if len(makers) > 1 else []),
        ]
        parts.append(f"{model} ({', '.join(facts)})" if facts else str(model))
    return f" by {_list(parts)}"


def _facts(what: str, values: Sequence[str | None]) -> list[str]:
    known = [value for value in dict.fromkeys(values) if value]
    return [f"{what} {_list(known)}"] if known else []


def _weights(found: Mapping[str, Any]) -> str:
    if found["level"] == "restricted" or not any(task["drawn"] for task in found["tasks"].values()):
        return ""
    if any(task.get("gated") for task in found["tasks"].values()):
        return "Each post that was asked about carries the weight 1 / (p_kept x p_sampled x p_asked)."
    return "Each post drawn carries the weight 1 / (p_kept x p_sampled)."


def _gone(found: Mapping[str, Any]) -> list[str]:
    posts = found["posts"]
    text = []
    if posts["deleted"]:
        text.append(
            f"By {_day(found['at'])}, {_posts(posts['deleted'])} of the period ({posts['share_deleted']:.1%} of those "
            "known) had been deleted; they are not in the data."
        )
    if posts["hidden"]:
        text.append(f"We left out {_posts(posts['hidden'])} of accounts that were not active.")
    if posts["left_out"]["consent"]:
        text.append(
            f"We left out {_posts(posts['left_out']['consent'])} because their authors ask not to be shown to those "
            "who are not signed in."
        )
    return text


def _choice(found: Mapping[str, Any]) -> list[str]:
    asked, text = found["asked"], []
    if asked["origin"] != "any":
        text.append(f"Only posts of the origin {asked['origin']} are in the data.")
    if asked["where"] or asked["model"] or asked["prompt"]:
        wanted = [*asked["where"]]
        wanted += [f"{name} {asked[name]}" for name in ("model", "prompt") if asked[name]]
        text.append(f"Of these, the {found['posts']['exported']:,} posts with labels of {_list(wanted)} were taken.")
    if found["level"] == "public":
        text.append("Authors and posts have keyed pseudonyms, times are cut to the hour, probabilities are rounded.")
    return text


def _posts(n: int) -> str:
    return f"{n:,} post" + "s" * (n != 1)


def _list(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""


def _day(text: str) -> str:
    return text[:10]


def filled(text: str) -> str:
    """A paragraph in lines."""
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
