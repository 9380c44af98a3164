"""What nobody should send, and somebody does."""

from collections.abc import Callable
from typing import Any, Final

from libipld import encode_dag_cbor

from bench import dagcbor
from bench.network import Network, Odd
from bench.records import LIKE, Op
from bench.truth import PostTruth, Truth


class Hostile(Network):
    """A network that also makes frames which are wrong in one way each, or look like it: its `as_` methods."""

    def as_unknown_kind(self) -> tuple[bytes, Truth]:
        frame, truth = self.plain("#later", self.author(), [("what", dagcbor.text("nobody knows"))])
        truth.kind = "ignored"
        return frame, truth

    def as_unknown_op(self) -> tuple[bytes, Truth]:
        frame, truth = self.identity()
        truth.kind = "ignored"
        at = frame.index(b"\x62op\x01") + 3
        return frame[:at] + b"\x02" + frame[at + 1 :], truth

    def as_noise(self) -> tuple[bytes, Truth]:
        return b"\xff" + self.random.randbytes(400), Truth("bad", self.seq)

    def as_header_alone(self) -> tuple[bytes, Truth]:
        return b"\xa2\x61t\x67#commit\x62op\x01", Truth("bad", self.seq)

    def as_bad_rev(self) -> tuple[bytes, Truth]:
        frame, truth = self.commit(self.author(), [self.stray_post()], Odd(rev=b"\x18\x2a"))
        truth.kind, truth.posts, truth.rev = "bad", [], ""
        return frame, truth

    def as_null_cid(self) -> tuple[bytes, Truth]:
        return self._faulty("bad_operation", cid=b"")

    def as_no_block(self) -> tuple[bytes, Truth]:
        return self._faulty("no_block", Odd(left_out=True))

    def as_cut_car(self) -> tuple[bytes, Truth]:
        return self._faulty("no_block", Odd(cut=300))

    def as_wrong_hash(self) -> tuple[bytes, Truth]:
        return self._faulty("wrong_hash", block=self.stray_post().block)

    def as_bad_path(self) -> tuple[bytes, Truth]:
        frame, truth = self._faulty("bad_operation", Odd(path=b"\x18\x2a"))
        truth.posts = [PostTruth("create", "", fault="bad_operation")]
        return frame, truth

    def as_odd_block(self) -> tuple[bytes, Truth]:
        """A block that is no CBOR stands before all others; the post is a good one."""
        return self.commit(
            self.author(), [self.stray_post()], Odd(more=dagcbor.car_block(self.noise_cid(), b"\xff\xff\xff"))
        )

    def as_more_fields(self) -> tuple[bytes, Truth]:
        return self.commit(self.author(), [self.stray_post()], Odd(extra=True))

    def as_list(self) -> tuple[bytes, Truth]:
        return self._with_record(encode_dag_cbor(["a", "list"]), "not_a_record")

    def as_wrong_type(self) -> tuple[bytes, Truth]:
        record = {"$type": LIKE, "createdAt": self.time(), **self.subject()}
        return self._with_record(encode_dag_cbor(record), "wrong_type")

    def as_bad_text(self) -> tuple[bytes, Truth]:
        return self._with_record(encode_dag_cbor(self.post_record()[0] | {"text": 42}), "bad_text")

    def as_deep(self) -> tuple[bytes, Truth]:
        return self._with_record(b"\x81" * 5000 + b"\x80", "undecodable")

    def stray_post(self) -> Op:
        """A post that nobody comes back to."""
        return self.post_op("create", self.rkey(), *self.post_record())

    def _with_record(self, block: bytes, fault: str) -> tuple[bytes, Truth]:
        return self.commit(self.author(), [self.post_op("create", self.rkey(), block, "", "", fault)])

    def _faulty(self, fault: str, odd: Odd | None = None, **changed: Any) -> tuple[bytes, Truth]:
        op = self.stray_post()
        assert op.post is not None
        cid = "" if "cid" in changed else op.post.cid
        truth = PostTruth("create", op.post.rkey, cid, "", "", fault)
        return self.commit(self.author(), [op._replace(post=truth, **changed)], odd)


WAYS: Final[dict[str, Callable[[Hostile], tuple[bytes, Truth]]]] = {
    name.removeprefix("as_"): method for name, method in vars(Hostile).items() if name.startswith("as_")
}
"""By name, in the order in which they come."""
