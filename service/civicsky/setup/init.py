"""`civicsky init`: asks what a new installation needs to know, writes it down, and tries it out.

It writes a settings file and beside it a file of secrets, both for their owner alone, each whole or not at all, and
never over others unless told: then the former ones stay beside. Secrets are asked for unseen or taken from the
environment; they are no flags, and nothing here shows one.
"""

import asyncio
import getpass
import os
import shlex
import shutil
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field as made_by
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar

from civicsky import datadir, log
from civicsky.errors import CivicskyError, Failed, Usage
from civicsky.loading import CONFIG_VARIABLE, SECRETS, file_of, load, load_without_file, secrets_file
from civicsky.model import format_time, now_us
from civicsky.settings import ENV_PREFIX, Settings, expanded
from civicsky.setup import places
from civicsky.setup.settings_file import secrets_text, settings_text
from civicsky.store import MongoStore

NONE: Final = "none"
"""The model's name of those who want none yet."""
_VARIABLES: Final = {name: variable for variable, name in SECRETS.items()}
KEY: Final = _VARIABLES["label.api_key"]
MONGO: Final = _VARIABLES["store.mongo_uri"]
OTHERS: Final = [variable for variable in SECRETS if variable not in {KEY, MONGO}]
_TRIES: Final = 5
"""Bad answers to one question in a row after which it ends: whatever answers may be no person."""

T = TypeVar("T")


class Terminal(Protocol):
    """Where the questions are asked."""

    asks: bool
    """False: nobody is there to answer."""
    width: int
    """Columns of a line."""

    def ask(self, question: str, default: str) -> str:
        """An answer; the default when it is empty. Raises `Failed` when there is none."""
        ...

    def ask_unseen(self, question: str) -> str:
        """An answer that is not shown while it is typed; it may be empty."""
        ...

    def say(self, text: str) -> None:
        """A line, or several."""
        ...


class Wanted(NamedTuple):
    """What the flags say."""

    config: Path | None
    data_dir: str | None
    relays: list[str] | None
    store: Literal["sqlite", "mongo"] | None
    model_url: str | None
    model: str | None
    defaults: bool
    """Ask nothing: what was not given has its default."""
    offline: bool
    force: bool


@dataclass
class Answers:
    """What is to be written down."""

    chosen: dict[str, Any] = made_by(default_factory=dict)
    """Settings by dotted name."""
    secrets: dict[str, str] = made_by(default_factory=dict)
    """By variable."""

    def settings(self) -> Settings:
        """What they come to, with what the environment says. Raises `Usage`."""
        return load_without_file(self.chosen | {SECRETS[name]: value for name, value in self.secrets.items()})


def init(wanted: Wanted, terminal: Terminal) -> bool:
    """Ask, write, try out; whether all that was tried is well.

    Raises `Usage` or `Failed`, and then nothing was written, though the data directory may have been made.
    """
    config = target(wanted.config)
    files = (config, secrets_file(config))
    if not wanted.force:
        _refuse_there(*files)
    _check_flags(wanted)
    asking = _Asking(wanted, terminal)
    questions = [asking.data_dir, asking.relays, asking.store, asking.model]
    for question in questions if asking.asks else reversed(questions):  # a folder is made only when nothing is missing
        question()
    answers = asking.answers
    texts = (settings_text(answers.chosen, files[1].name), secrets_text(answers.secrets))
    terminal.say("")
    for former in write(dict(zip(files, texts, strict=True)), force=wanted.force):
        terminal.say(f"the former one is kept: {_shown(former)}")
    terminal.say(f"written: {_shown(config)}")
    n = len(answers.secrets)
    terminal.say(f"written: {_shown(files[1])} ({n or 'no'} secret{'' if n == 1 else 's'}; for you alone)")
    _tell_unwritten(answers, terminal)
    good = wanted.offline or _tried(load(config), terminal)
    _say_next(config, answers, terminal, good=good)
    return good


def target(config: Path | None) -> Path:
    """The settings file to write: the one that is named, else the environment's, else the usual one."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config")
    return expanded(file_of(config) or folder / "civicsky" / "civicsky.toml")


def _refuse_there(*files: Path) -> None:
    for file in files:
        if os.path.lexists(file):
            raise Usage(f"{file} is there already; name another with --config, or use --force, which keeps it beside")


def _check_flags(wanted: Wanted) -> None:
    if wanted.model in {NONE, "local"} and wanted.model_url:
        raise Usage(f"--model {wanted.model} has no address: leave --model-url out")


# ---- the questions ---------------------------------------------------------------------------------------------------


class _Asking:
    """The questions, one after another. What a flag or the environment says is not asked."""

    def __init__(self, wanted: Wanted, terminal: Terminal) -> None:
        self._wanted, self._terminal = wanted, terminal
        self.asks = terminal.asks and not wanted.defaults
        flags = {"source.relays": wanted.relays, "store.kind": wanted.store, "label.model_url": wanted.model_url}
        self._given = load_without_file(flags)
        self.answers = Answers()
        for variable in OTHERS:  # not asked for, but kept where they are set
            group, _, field = SECRETS[variable].partition(".")
            if secret := getattr(getattr(self._given, group), field).get_secret_value():
                self.answers.secrets[variable] = secret

    def data_dir(self) -> None:
        """A folder on a local disk, which is there or can be made."""
        named = self._wanted.data_dir or os.environ.get("CIVICSKY_DATA_DIR")
        found = places.candidates(os.environ, _user())
        if named:
            try:
                folder = _local(named)
            except Usage as error:
                raise Usage(f"{error}{_fit(found)}") from None
        elif self.asks:
            self._say("\nWhere the databases go: a folder on a local disk, never on a network file system.")
            for place in found:
                self._terminal.say(f"  {log.harmless(str(place))}")
            folder = self._answered("Data directory", str(found[0].folder) if found else "", _local)
        elif found and found[0].folder.is_relative_to(Path.home()):
            folder = _local(str(found[0].folder))
        else:
            raise Usage(f"--data-dir is missing: your home is not on a local disk{_fit(found)}")
        self.answers.chosen["data_dir"] = str(folder)

    def relays(self) -> None:
        """One or several."""
        relays = self._given.source.relays
        if self.asks and not self._wanted.relays and "CIVICSKY_SOURCE__RELAYS" not in os.environ:
            self._say("\nWhere the stream comes from: relays, best first, with blanks between them.")
            relays = self._answered("Relays", " ".join(relays), _relays)
        self.answers.chosen["source.relays"] = relays

    def store(self) -> None:
        """Which one, and MongoDB's address."""
        kind: str = self._given.store.chosen
        if self.asks and not self._wanted.store:
            self._say("\nWhere you read the posts: mongo (a MongoDB server), or sqlite (a file beside the others).")
            kind = self._answered("Store", kind, _store)
        self.answers.chosen["store.kind"] = kind
        if kind == "mongo":
            self.answers.secrets[MONGO] = self._mongo_uri()

    def _mongo_uri(self) -> str:
        uri = self._given.store.mongo_uri.get_secret_value()
        if uri:
            self._terminal.say(f"MongoDB's address is taken from {MONGO}")
            return _mongo(uri)
        if not self.asks:
            raise Usage(f"MongoDB's address is missing: set {MONGO} in the environment (it is a secret, so no flag)")
        self._say("Its address, as in mongodb://NAME:PASSWORD@HOST:27017/?authSource=admin")
        return self._answered("MongoDB's address (not shown)", None, _mongo)

    def model(self) -> None:
        """Which one, where, and its key; or none yet."""
        url, name = self._given.label.model_url, self._wanted.model or self._given.label.model
        if self.asks and not name and not url:
            self._say(
                "\nThe model that labels: the address of an OpenAI-compatible server, with its /v1; or local, a small "
                "one for trials; or none, to collect now and label later."
            )
            answer = self._answered("Model's address", NONE, _address)
            url, name = ("", answer) if answer in {NONE, "local"} else (answer, "")
        if name == NONE:
            return
        if name and not url and name != "local":
            url = self._missing("Model's address", "--model-url", _url)
        if not name:
            what = "--model (a name, local or none)" if not url else "--model"
            name = self._missing("Model's name there", what, _name)
        self.answers.chosen["label.model"] = name
        if name != "local":
            self.answers.chosen["label.model_url"] = url
            self._key()

    def _key(self) -> None:
        key = self._given.label.api_key.get_secret_value()
        if key:
            self._terminal.say(f"the server's key is taken from {KEY}")
        elif self.asks:
            key = self._answered("The server's key (not shown; empty: it wants none)", None, _key)
        if key:
            self.answers.secrets[KEY] = _key(key)

    def _say(self, text: str) -> None:
        blank, text = ("\n", text[1:]) if text.startswith("\n") else ("", text)
        self._terminal.say(blank + _wrapped("", text, self._terminal.width))

    def _missing(self, question: str, flag: str, read: Callable[[str], T]) -> T:
        if not self.asks:
            raise Usage(f"{flag} is missing, and has no default")
        return self._answered(question, "", read)

    def _answered(self, question: str, default: str | None, read: Callable[[str], T]) -> T:
        """Ask until the answer can be used. `default` is None for a secret."""
        ask = partial(self._terminal.ask, default=default) if default is not None else self._terminal.ask_unseen
        for _try in range(_TRIES):
            try:
                return read(ask(question).strip())
            except CivicskyError as error:
                if isinstance(error, Failed):
                    raise
                self._say(log.harmless(str(error).removeprefix("flag or setting: ")))
        raise Usage(f"{question}: no answer that can be used; nothing was written")


def _local(answer: str) -> Path:
    """A folder by its name, which is made at once: only so it is certain that it can be."""
    if not answer:
        raise Usage("a data directory is needed")
    folder = expanded(Path(answer))
    places.check(folder)
    return datadir.prepare(folder)


def _relays(answer: str) -> tuple[str, ...]:
    return load_without_file({"source.relays": answer.replace(",", " ").split() or [""]}).source.relays


def _store(answer: str) -> str:
    if answer not in {"mongo", "sqlite"}:
        raise Usage("mongo or sqlite")
    return answer


def _mongo(answer: str) -> str:
    MongoStore(load_without_file({"store.mongo_uri": answer}).store)  # opens nothing
    secrets_text({MONGO: answer})
    return answer


def _address(answer: str) -> str:
    return answer if answer in {NONE, "local"} else _url(answer)


def _url(answer: str) -> str:
    url = load_without_file({"label.model_url": answer}).label.model_url
    if not url:
        raise Usage("an address is needed, such as http://127.0.0.1:8000/v1")
    return url


def _name(answer: str) -> str:
    if not answer:
        raise Usage("a name is needed: the server's list of models has it (/v1/models)")
    return answer


def _key(answer: str) -> str:
    if answer:
        secrets_text({KEY: answer})
    return answer


def _fit(found: list[places.Place]) -> str:
    return f"; fit here: {log.harmless(', '.join(map(str, found[:4])))}" if found else ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return str(os.geteuid())


# ---- the files -------------------------------------------------------------------------------------------------------


def write(texts: Mapping[Path, str], *, force: bool) -> list[Path]:
    """Write these files, for their owner alone, each whole or not at all; where former ones are now.

    Raises `Usage` when one is there already and `force` is not set, or cannot be written.
    """
    half, kept, done = {}, {}, []
    try:
        for file, text in texts.items():
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            half[file] = file.with_name(f".{file.name}.{os.getpid()}")
            _write_new(half[file], text)
        for file in texts if force else ():
            if os.path.lexists(file):
                kept[file] = _set_aside(file)
        for file, new in half.items():
            os.link(new, file)  # unlike a renaming this never replaces
            done.append(file)
    except OSError as error:
        for file in done:
            file.unlink(missing_ok=True)
        for file, former in kept.items():
            former.rename(file)
        if isinstance(error, FileExistsError) and error.filename2:
            raise Usage(f"{error.filename2} is there already; somebody was faster") from None
        where = error.filename or next(iter(texts))
        raise Usage(f"{where} cannot be written: {error.strerror}; name another with --config") from None
    finally:
        for new in half.values():
            new.unlink(missing_ok=True)
    return list(kept.values())


def _write_new(file: Path, text: str) -> None:
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _set_aside(file: Path) -> Path:
    stamp = format_time(now_us()).replace(":", "").replace("-", "")
    former = file.with_name(f"{file.name}.{stamp}")
    file.rename(former)
    return former


# ---- what is said ----------------------------------------------------------------------------------------------------


def _tell_unwritten(answers: Answers, terminal: Terminal) -> None:
    """Settings that the environment has beside: by name only."""
    written = {f"{ENV_PREFIX}{name.upper().replace('.', '__')}" for name in answers.chosen} | set(SECRETS)
    others = {name.upper() for name in os.environ if name.upper().startswith(ENV_PREFIX)} - written - {CONFIG_VARIABLE}
    if others:
        terminal.say(f"set in the environment, and not written: {', '.join(sorted(others))}")


def _tried(settings: Settings, terminal: Terminal) -> bool:
    """Whether the far sides can be had, a line each."""
    from civicsky import doctor  # noqa: PLC0415  (heavy: what is missing is told without)

    terminal.say("\ntrying out:")
    found = asyncio.run(doctor.far_sides(settings))
    for one in found:
        told = f"{one.what}; {one.remedy}" if one.remedy else one.what
        terminal.say(_wrapped(f"{one.state:8} {one.name:6} ", told, terminal.width))
    return doctor.healthy(found)


def _wrapped(head: str, text: str, width: int) -> str:
    indent = " " * len(head)
    return textwrap.fill(
        text, width, initial_indent=head, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _say_next(config: Path, answers: Answers, terminal: Terminal, *, good: bool) -> None:
    labels = "label.model" in answers.chosen
    commands = [
        *([] if good else [("doctor", "what is wrong, once more")]),
        ("plan", "what labelling will take, before any call"),
        ("run" if labels else "collect", "try it; Ctrl-C ends it, and it goes on from there"),
        (f"service install {_keeper()}", "keep it running"),
    ]
    if not good:
        terminal.say("\nnot all is well yet; the settings are written all the same")
    terminal.say("\nnext:")
    for words, why in commands:
        terminal.say(f"  civicsky {words} --config {shlex.quote(_shown(config))}\n      {why}")
    if shutil.which("sbatch"):
        terminal.say("this is a Slurm cluster: docs/cluster.md has the way, with jobs that start themselves again")


def _keeper() -> str:
    """What starts it again on this machine: systemd's manager of this user, or cron."""
    there = Path(os.environ.get("XDG_RUNTIME_DIR") or "/nonexistent") / "systemd" / "private"
    return "--systemd" if shutil.which("systemctl") and there.exists() else "--cron --keep-alive"


def _shown(file: Path) -> str:
    return log.harmless(str(file))
