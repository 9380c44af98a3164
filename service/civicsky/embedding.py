"""Texts as vectors, by a small packaged model: the home of safetensors, tokenizers and the files of wordllama.

A text's vector is the mean of its tokens' vectors, made 1 long. The package wordllama carries the table of vectors and
the tokenizer's rules; its own code is never imported: it would set up logging for the whole process, and download what
it does not find. Nothing here opens a connection. Memory: 16 MB for the table, 15 MB for the tokenizer.
"""

import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from civicsky.errors import Usage

if TYPE_CHECKING:
    import numpy as np

PACKAGE: Final = "wordllama"
MAX_CHARS: Final = 4_000
"""Characters of a text that are read: thirteen times what a post may have."""
_TABLE: Final = "wordllama/weights/l2_supercat_256.safetensors"
_RULES: Final = "wordllama/tokenizers/l2_supercat_tokenizer_config.json"
_KEY: Final = "embedding.weight"


class Need(NamedTuple):
    """What the model is wanted for: whoever lacks it is told what to install."""

    what: str
    extra: str
    """Of the package, and the name of its list under requirements/."""

    @property
    def install(self) -> str:
        """Half of a sentence."""
        return (
            f"{self.what} needs the extra `{self.extra}`; in the folder with civicsky's source: "
            f"pip install --require-hashes -r requirements/{self.extra}.txt"
        )


GATE: Final = Need("the gate's model", "gate")
ARTICLES: Final = Need("events.folder", "events")


class Identity(NamedTuple):
    """Which model makes the vectors. Those of two models cannot be compared."""

    name: str
    version: str
    """Of the package."""
    sha256: str
    """Of the table and the rules, as hexadecimal digits."""


class Embedding:
    """The model in memory. Its methods may be called from any thread, one at a time."""

    def __init__(self, identity: Identity, table: "np.typing.NDArray[np.float16]", tokenizer: Any) -> None:
        self.identity = identity
        self.width = int(table.shape[1])
        self._table, self._tokenizer = table, tokenizer

    def vectors(self, texts: Sequence[str]) -> "np.typing.NDArray[np.float32]":
        """(texts, width): vectors 1 long; of 0 for a text without a token. About 0.1 ms a post."""
        import numpy as np  # noqa: PLC0415

        found = np.zeros((len(texts), self.width), np.float32)
        for at, text in enumerate(texts):
            # Half of a surrogate pair is no text to the tokenizer.
            plain = text[:MAX_CHARS].encode(errors="replace").decode()
            tokens = self._tokenizer.encode(plain, add_special_tokens=False).ids
            if tokens:
                mean = self._table[tokens].astype(np.float32).mean(axis=0)
                found[at] = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return found

    def probabilities(self, texts: Sequence[str], weights: Sequence[float], bias: float) -> list[float]:
        """What a linear head over the vectors says of each text, 0 to 1; the same whatever texts come with it."""
        import numpy as np  # noqa: PLC0415

        head = np.array(weights, np.float64)
        odds = np.array([float(vector @ head) for vector in self.vectors(texts)]) + bias
        return [float(one) for one in 1 / (1 + np.exp(-np.clip(odds, -700, 700)))]


def load(need: Need = GATE) -> Embedding:
    """Read the packaged model, some 0.3 s. Raises `Usage`, saying who needs what installed, when it is not there."""
    paths = [_file(name, need) for name in (_TABLE, _RULES)]
    if not all(map(find_spec, ("numpy", "safetensors", "tokenizers"))):
        raise Usage(need.install)
    from safetensors.numpy import load as tensors  # noqa: PLC0415
    from tokenizers import Tokenizer  # noqa: PLC0415

    weights, rules = (path.read_bytes() for path in paths)
    table = tensors(weights)[_KEY]
    tokenizer = Tokenizer.from_buffer(rules)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    digest = hashlib.sha256(weights)
    digest.update(rules)
    identity = Identity(f"{PACKAGE} {Path(_TABLE).stem}", distribution(PACKAGE).version, digest.hexdigest())
    return Embedding(identity, table, tokenizer)


def _file(name: str, need: Need) -> Path:
    """One of the package's files, found without importing it."""
    try:
        path = Path(str(distribution(PACKAGE).locate_file(name)))
    except PackageNotFoundError:
        raise Usage(need.install) from None
    if not path.is_file():
        raise Usage(f"the package {PACKAGE} has no {name}: another version than ours; {need.install}")
    return path
