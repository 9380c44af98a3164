"""A running model server that a test tells how to behave, and what it noted."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from civicsky.record import readable
from civicsky.settings import Label
from support.command import model_server
from support.model_knobs import ANSWER, CHOICE, CONTENT, ITEMS, WIRE
from support.model_says import answer_for


@dataclass(frozen=True)
class ToldModel:
    url: str
    requests: Path

    def tell(self, *knobs: dict[str, Any], **told: Any) -> Any:
        """Behave so from now on; gives what happened so far."""
        return self._call("POST", "/control", {"knobs": knobs, **told})

    def state(self) -> Any:
        """What happened so far."""
        return self._call("GET", "/state", None)

    def entries(self) -> list[dict[str, Any]]:
        """Each request, in the order in which they came."""
        return [json.loads(line) for line in self.requests.read_text().splitlines()]

    def _call(self, method: str, path: str, body: Any) -> Any:
        address = self.url.removesuffix("/v1") + path
        return httpx.request(method, address, json=body, trust_env=False, timeout=60).raise_for_status().json()


@contextmanager
def told_model(folder: Path, *options: str) -> Iterator[ToldModel]:
    """A server of its own; it ends with no crash of its own."""
    folder.mkdir(exist_ok=True)
    with model_server(folder / "model.log", "--requests", folder / "model.requests", *options) as url:
        model = ToldModel(url, folder / "model.requests")
        yield model
        assert model.state()["crashes"] == 0


def honest(text: str) -> dict[str, str]:
    """What the server says of a text that a task `civic` asks about, without the fields that do not apply."""
    said = answer_for(text)
    return said if said["civic"] == "civic" else {"civic": said["civic"]}


def text_of(fields: dict[str, Any]) -> str:
    """What a model reads of a post, by the fields of its document."""
    return readable(fields)[: Label().max_chars]


def everything(share: float, *, many: bool | None = None) -> list[dict[str, Any]]:
    """All knobs, each acting on this share of the requests. `many`: only of those of several posts, or of one."""
    mixed: list[dict[str, Any]] = [{"name": name} for name in WIRE.keys() - {"status", "refuse", "gzip_bomb"}]
    mixed += [{"name": name} for name in CONTENT.keys() | CHOICE.keys() | ANSWER.keys()]
    mixed += [{"name": name, "count": count} for name in ITEMS for count in (1, 3)]
    mixed += [{"name": "status", "status": status} for status in (408, 429, 500, 502, 503, 504, 529)]
    mixed += [{"name": "status", "status": 429, "retry_after": 1, "as_date": as_date} for as_date in (True, False)]
    mixed += [{"name": "refuse", "what": what} for what in ("json_schema", "logprobs", "max_tokens")]
    mixed += [{"name": "gzip_bomb", "size": 3_000_000}, {"name": "slow", "seconds": 0.05}]
    return sorted(({**knob, "share": share, "many": many} for knob in mixed), key=json.dumps)
