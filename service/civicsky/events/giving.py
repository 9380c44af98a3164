"""What passes between asking about posts and the articles that are given with them: small shapes and rules."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from civicsky.errors import UNREACHABLE, BadInput, Transient
from civicsky.model import Answer, Asked, Job, LabelRow, Spend
from civicsky.prompt import Message
from civicsky.task import Task


class WriterShape(Protocol):
    """See `label.Slot`."""

    async def write(self, messages: Sequence[Message], max_tokens: int) -> tuple[str, Spend]:
        """An answer in plain text. Raises `BadInput` and `Transient`, with their `spend`, and `Refused`."""
        ...


class Given(NamedTuple):
    """What a model is given besides the post."""

    text: str
    """Never empty."""
    told: str
    """JSON: which articles, how far they are, of which summaries; for the label's provenance."""

    def to(self, asked: Asked) -> Asked:
        """The post with it."""
        context = "\n".join(filter(None, (asked.context, self.text)))
        return asked._replace(context=context, events=self.told)


class EventsShape(Protocol):
    """See `events.Events`."""

    @property
    def unclear(self) -> Collection[str]:
        """Fields that, when they are unclear, have a post asked about once more."""
        ...

    async def of(self, text: str, at: int, writer: WriterShape | None, *, named: bool) -> Given | None:
        """What to give with a post of this text and time; None: nothing."""
        ...


class First(NamedTuple):
    """An answer that is kept, and may not be the last one: articles may tell what the post means."""

    job: Job
    asked: Asked
    label: LabelRow


def is_unclear(task: Task, answer: Answer, names: Collection[str]) -> bool:
    """Whether one of these fields applies and got its value for "cannot be told"."""
    return any(
        field.name in names
        and field.unclear is not None
        and field.name in answer.fields
        and answer.fields[field.name].value == field.unclear
        for field in task.fields
    )


S = TypeVar("S", bound=WriterShape)
S_contra = TypeVar("S_contra", bound=WriterShape, contravariant=True)


class AskingShape(Protocol[S_contra]):
    """See `asking.Asking`."""

    answers: int

    async def is_free(self, slot: S_contra) -> bool:
        """Wait until a server may be called; False when the run ends hurriedly meanwhile."""
        ...

    def at_work(self) -> AbstractContextManager[Any]:
        """While a call is on its way."""
        ...

    async def is_at_fault(self, slot: S_contra, error: Transient, before: int) -> bool:
        """Whether a call failed by what was asked."""
        ...


class Writer(Generic[S]):
    """A slot that writes summaries when a server may be called."""

    def __init__(self, asking: AskingShape[S], slot: S) -> None:
        self._asking, self._slot = asking, slot

    async def write(self, messages: Sequence[Message], max_tokens: int) -> tuple[str, Spend]:
        """As the slot's. Raises `Transient` also when the run ends hurriedly meanwhile.

        When a call breaks that others do not, it is `BadInput`: what was asked is at fault.
        """
        if not await self._asking.is_free(self._slot):
            raise Transient("the run ends")
        before = self._asking.answers
        with self._asking.at_work():
            try:
                return await self._slot.write(messages, max_tokens)
            except Transient as error:
                if not await self._asking.is_at_fault(self._slot, error, before):
                    raise
                bad = BadInput(UNREACHABLE)
                bad.spend = error.spend
                raise bad from None
