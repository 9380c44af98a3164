"""The text of a settings file and of its file of secrets, with comments. Pure; the home of tomlkit.

Names, defaults and comments are those of `settings.py`, so the text knows no setting that there is not.
"""

import ast
import inspect
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Any, Final

import tomlkit

from civicsky import settings
from civicsky.errors import Usage
from civicsky.loading import SECRETS
from civicsky.settings import Group, Settings

SHOWN: Final = (
    "data_dir",
    "source.relays",
    "source.start",
    "source.window.from",
    "source.window.to",
    "source.window.zone",
    "source.window.resume",
    "filter.keep",
    "journal.post_days",
    "journal.max_bytes",
    "journal.at_bound",
    "label.tasks",
    "label.model_url",
    "label.more_urls",
    "label.model",
    "label.slots",
    "label.requests_per_minute",
    "label.tokens_per_minute",
    "label.budget_tokens",
    "label.budget_money",
    "label.prices",
    "sample.posts_per_day",
    "context.quote",
    "context.root",
    "context.parent",
    "store.kind",
    "store.mongo_database",
    "appview.contact",
    "feeds.at",
    "feeds.zone",
    "authors.fetch",
    "log.level",
    "log.file",
    "notify.format",
    "notify.command",
    "http.listen",
    "limits.drain_seconds",
)
"""What a new file shows: what people change. The others are in docs/configuration.md."""
WIDTH: Final = 100
_PLAIN_SECRET: Final = re.compile(r"[!-&(-\[\]-~]+( [!-&(-\[\]-~]+)*")
"""Printable ASCII without ' and backslash: between quotes a shell, systemd and we read it alike."""
_WHY: Final = {
    "label.api_key": "The key of the model's server.",
    "workers.password": "The password of `workers.user` in NATS.",
    "workers.token": "NATS's token, if it wants one.",
    "store.mongo_uri": "MongoDB's connection string. A user with the role readWrite on the database is enough.",
    "appview.app_password": "The app password of the account that fetches feeds which want a login.",
    "notify.url": "The webhook's address; many hold a token.",
    "notify.token": "The webhook's token, sent as a Bearer.",
    "http.token": "What readers of the health over HTTP must send as a Bearer; 16 characters or more.",
}


def settings_text(chosen: Mapping[str, Any], secrets_name: str) -> str:
    """A settings file (TOML) in which these are set, by dotted name, and what people change stands as a comment.

    Raises `Usage` for a value that TOML cannot hold.
    """
    head = [
        "Settings of civicsky. A line that begins with # is not in force: it shows the default, to be changed.",
        "docs/configuration.md lists all settings, `civicsky config --config FILE` prints what counts.",
        f"Secrets do not belong in here: they stand in {ascii(secrets_name)[1:-1]}, beside this file.",
    ]
    lines, group = [f"# {line}" for line in head], ""
    known = described()
    for name in sorted({*SHOWN, *chosen}, key=list(known).index):
        above, _, field = name.rpartition(".")
        if above != group:
            group = above
            lines += ["", "", f"[{group}]"]
        default, told = known[name]
        lines += [*([] if lines[-1].startswith("[") else [""]), *_comment(told)]
        lines.append(f"{field} = {_value(chosen[name])}" if name in chosen else _not_in_force(field, default))
    text = "\n".join(lines) + "\n"
    _check(text, chosen)
    return text


def secrets_text(secrets: Mapping[str, str]) -> str:
    """A file of secrets in which these are set, by variable; the others stand as comments.

    Raises `Usage` for one that cannot be written so that all who read it read the same; it does not tell the value.
    """
    lines = ["# Secrets of civicsky: for you alone (mode 600). A shell and systemd read it, too."]
    for variable, name in SECRETS.items():
        lines += ["", f"# {_WHY[name]}"]
        if variable not in secrets:
            lines.append(f"#{variable}='...'")
            continue
        if not _PLAIN_SECRET.fullmatch(secrets[variable]):
            raise Usage(
                f"{variable}: it has a quotation mark ('), a backslash, blanks around it or characters beyond ASCII; "
                "in an address write them as %27, %5C and so on"
            )
        lines.append(f"{variable}='{secrets[variable]}'")
    return "\n".join(lines) + "\n"


@cache
def described() -> dict[str, tuple[Any, str]]:
    """Every setting, in their order: its default, and what its docstring says."""
    told = _docstrings()
    return {name: (default, " ".join(told[key].split())) for name, key, default in _fields(Settings.model_construct())}


def _fields(group: Any, above: str = "") -> Iterator[tuple[str, tuple[str, str], Any]]:
    """The dotted name, (class, field) and default of every setting."""
    for field, info in type(group).model_fields.items():
        name, value = above + (info.alias or field), getattr(group, field)
        if isinstance(value, Group):
            yield from _fields(value, f"{name}.")
        else:
            yield name, (type(group).__name__, field), value


def _docstrings() -> dict[tuple[str, str], str]:
    """The text under each field of each class of `settings.py`."""
    found = {}
    for part in ast.parse(inspect.getsource(settings)).body:
        body = part.body if isinstance(part, ast.ClassDef) else []
        for field, after in pairwise(body):
            if (
                isinstance(part, ast.ClassDef)
                and isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[part.name, field.target.id] = str(after.value.value)
    return found


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False
    )


def _not_in_force(field: str, default: Any) -> str:
    return f"#{field} =" if default is None else f"#{field} = {_value(default)}"


def _value(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    if isinstance(plain, dict):
        table = tomlkit.inline_table()
        table.update(plain)
        return table.as_string()
    return tomlkit.item(plain if isinstance(plain, str | int | float | list) else str(plain)).as_string()


def _check(text: str, chosen: Mapping[str, Any]) -> None:
    """Whoever reads it reads what was chosen."""
    try:
        read: Any = tomllib.loads(text.encode().decode())
    except (UnicodeEncodeError, tomllib.TOMLDecodeError):
        raise Usage("a value has characters that a settings file cannot hold; choose another name or path") from None
    for name, value in chosen.items():
        found = read
        for part in name.split("."):
            found = found[part]
        wanted = list(value) if isinstance(value, tuple) else value
        if found != wanted:
            raise Usage(f"{name}: {value!a} cannot be written into a settings file; choose another")
