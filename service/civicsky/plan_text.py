"""The plan as people read it. It holds posts' texts, so nothing of it may move a terminal's cursor."""

import textwrap
from typing import Any, Final

from civicsky.log import harmless
from civicsky.plan import CHARACTERS_A_TOKEN, DAYS_A_MONTH
from civicsky.traffic import ENGLISH, FRAMES_A_SECOND, PEAK_POSTS_A_SECOND, POSTS_A_SECOND

COLUMNS: Final = 100
"""Of the figures."""


def as_text(plan: dict[str, Any]) -> str:
    """For people, prompts and all."""
    traffic, sample, tokens, hours = plan["traffic"], plan["sample"], plan["tokens"], plan["busy"]
    probes = "" if tokens["basis"] == "measured" else ", drift probes included"
    there = "" if plan["data_dir_used"] else " (nothing was collected there: all is assumed)"
    lines = [
        f"data directory   {harmless(plan['data_dir'])}{there}",
        f"model            {harmless(plan['model']) or 'none chosen'}; tasks: {', '.join(plan['tasks'])}",
        f"traffic          {_came(traffic)} ({_basis(traffic)})",
        f"time             {_time(plan['time'], _which(traffic))}",
        f"drawn            {sample['posts_a_day']:,.0f} a day ({_why(sample)})",
        f"precision        {_precision(plan['precision'])}",
        *_gate(plan.get("gate")),
        f"requests         {plan['requests_a_day']:,.0f} a day{probes}",
        f"tokens           {tokens['in_a_day']:,.0f} in, {tokens['out_a_day']:,.0f} out a day; "
        f"{tokens['in_a_label']:,.0f} and {tokens['out_a_label']:,.0f} a label ({_rule(plan)})",
        f"cost             {_cost(plan)}",
        f"busy             {hours['hours_a_day']:,.1f} hours a day by {hours['bounded_by']} "
        f"({hours['seconds_a_call']:.2f} s a call, {hours['basis']})" + _too_much(hours),
        *_disk_text(plan["disk"]),
    ]
    wrap = textwrap.TextWrapper(COLUMNS, subsequent_indent=" " * 17, break_long_words=False, break_on_hyphens=False)
    lines = [part for line in lines for part in wrap.wrap(line)]
    lines += [
        "",
        f"What would be sent, about posts of the {plan['prompts_of']}"
        + (" (made up)" if plan["prompts_of"] == "sample" else "")
        + ("; the context would be fetched first" if plan["context"] else ""),
    ]
    beginnings: set[str] = set()
    for request in plan["prompts"]:
        about = f", {request['field']}" if "field" in request else ""
        lines += ["", f"== {request['task']}{about} ({request['way']})"]
        for message in request["messages"]:
            again = message["role"] == "system" and message["content"] in beginnings
            shown = ["(the same as above)"] if again else map(_whole, message["content"].split("\n"))
            lines += [f"-- {message['role']}", *shown]
            beginnings.add(message["content"])
    return "\n".join(lines)


def _which(traffic: dict[str, Any]) -> str:
    return "English" if traffic["kept"] == "english" else "kept"


def _came(traffic: dict[str, Any]) -> str:
    posts, kept, frames = (
        [f"{traffic[f'{what}_{per}']:,.0f}" for per in ("a_day", "an_hour")] for what in ("posts", "kept", "frames")
    )
    return (
        f"{posts[0]} posts a day, {kept[0]} {_which(traffic)} ones, {frames[0]} frames; "
        f"{posts[1]}, {kept[1]} and {frames[1]} an hour"
    )


def _basis(traffic: dict[str, Any]) -> str:
    hours = traffic["hours_a_day"]
    return _counted(traffic) + (f"; source.window: {hours:.1f} hours a day" if hours < 24 else "")  # noqa: PLR2004


def _counted(traffic: dict[str, Any]) -> str:
    if traffic["basis"] == "measured":
        short = "; less than a day, so look at the time of day" if traffic["hours_held"] < 23.5 else ""  # noqa: PLR2004
        return f"measured: {traffic['hours_held']:,.1f} hours held{short}"
    low, high = FRAMES_A_SECOND
    english = f", {ENGLISH:.0%} of them English" if traffic["kept"] == "english" else ""
    return f"assumed: {low} to {high} frames/s, {POSTS_A_SECOND} posts/s{english}"


def _time(time: dict[str, Any], which: str) -> str:
    if time["basis"] == "measured at this hour":
        basis = f"measured at this hour of {time['days']} days"
    elif time["basis"] == "measured":
        basis = "measured, but at other hours: all are taken to be alike"
    else:
        basis = f"assumed: all hours alike, though the busiest have {PEAK_POSTS_A_SECOND} posts/s"
    posts = f"{time['posts']:,}"
    return (
        f"{posts} posts in {_lasts(time['seconds'])}, {posts} {which} ones in {_lasts(time['kept_seconds'])}, from "
        f"{time['from'][:16]}Z on: {time['posts_an_hour']:,.0f} posts in this hour ({basis})"
    )


def _lasts(seconds: float | None) -> str:
    if seconds is None:
        return "more than a year"
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} s"


def _precision(precision: dict[str, Any]) -> str:
    if precision["half_width_a_day"] is None:
        return "no posts, no estimate"
    return (
        f"a share of .5 is known to within {precision['half_width_a_day']:.4f} from a day, "
        f"{precision['half_width_a_month']:.4f} from {DAYS_A_MONTH} (95 %; less well where few authors post much)"
    )


def _gate(gate: dict[str, Any] | None) -> list[str]:
    if gate is None:
        return []
    basis = "measured on" if gate["basis"] == "measured" else "stated of its GOLD,"
    return [
        f"gate             {harmless(gate['task'])}: the model is asked about {gate['asked']:.0%} of the drawn "
        f"({basis} {gate['posts']:,} posts); the precision above is without what the gate costs, and budgets bound the "
        "draw as if there were none"
    ]


def _why(sample: dict[str, Any]) -> str:
    if sample["bounded_by"] == "all":
        return "all"
    return f"{sample['bounded_by']}; {sample['share']:.1%} of these, drawn by {sample['unit']}"


def _rule(plan: dict[str, Any]) -> str:
    tokens = plan["tokens"]
    if tokens["basis"] == "measured":
        return f"measured on {tokens['labels']:,} labels"
    rule = f"estimated: {CHARACTERS_A_TOKEN} characters a token, longest answer, posts of the {tokens['characters_of']}"
    return rule + (", context as long as the post for each part" if plan["context"] else "")


def _cost(plan: dict[str, Any]) -> str:
    cost = plan["cost"]
    if cost["a_day"] is None:
        void = "; until then label.budget_money bounds nothing" if cost["budget_without_price"] else ""
        return f"no price given for {harmless(plan['model']) or 'a model'}: set label.prices{void}"
    at_most = "; less where the server has the beginning of a prompt in its cache" if cost["cached_is_cheaper"] else ""
    return f"{cost['a_day']:,.2f} {cost['currency']} a day, {cost['a_month']:,.2f} in {DAYS_A_MONTH} days{at_most}"


def _too_much(hours: dict[str, Any]) -> str:
    return "; MORE THAN A DAY HAS: fewer posts, more servers" if hours["hours_a_day"] > 24 else ""  # noqa: PLR2004


def _disk_text(disk: dict[str, Any]) -> list[str]:
    journal = disk["journal"]
    bound = " (journal.max_bytes is reached)" if journal["bound_reached"] else ""
    return [
        f"disk             {disk['basis']}" + (f", {disk['posts']:,} kept posts" if disk["posts"] else ""),
        f"  journal        {_bytes(journal['a_day'])} a day, {_bytes(journal['steady'])} in the long run{bound}",
        *(
            f"  {name:14} {_bytes(disk[name]['a_day'])} a day, {_bytes(disk[name]['a_month'])} a month, for ever"
            for name in ("ledger", "store")
        ),
    ]


def _bytes(n: float) -> str:
    return f"{n / 1e9:,.2f} GB" if n >= 1e9 else f"{n / 1e6:,.1f} MB"  # noqa: PLR2004


def _whole(line: str) -> str:
    """Harmless as a line of the log is, but not cut."""
    return "".join(harmless(line[at : at + 500]) for at in range(0, len(line), 500))
