"""The SDK's way with a frame, as its documentation and examples have it (examples/firehose of the atproto package).

Every commit's CAR is decoded, and every created record becomes a model, before anybody asks whether it is a post. What
differs from the example: an update is read like a creation ("not supported yet" there), a deletion names its author,
and nothing is printed.
"""

from collections import defaultdict
from typing import Any

from atproto import (  # type: ignore[import-untyped]
    CAR,
    AtUri,
    firehose_models,
    models,
    parse_subscribe_repos_message,
)

INTERESTED = {
    models.ids.AppBskyFeedLike: models.AppBskyFeedLike,
    models.ids.AppBskyFeedPost: models.AppBskyFeedPost,
    models.ids.AppBskyGraphFollow: models.AppBskyGraphFollow,
}
POSTS = models.ids.AppBskyFeedPost
Ops = dict[str, dict[str, list[dict[str, Any]]]]


def message(data: bytes) -> firehose_models.MessageFrame:
    """What the SDK's client hands to its callback."""
    frame = firehose_models.Frame.from_bytes(data)
    if not isinstance(frame, firehose_models.MessageFrame):
        raise TypeError("no message")
    return frame


def commit_of(
    frame: firehose_models.MessageFrame,
) -> models.ComAtprotoSyncSubscribeRepos.Commit | None:
    """The commit of a message that is one and carries blocks."""
    commit = parse_subscribe_repos_message(frame)
    if not isinstance(commit, models.ComAtprotoSyncSubscribeRepos.Commit) or not commit.blocks:
        return None
    return commit


def ops_by_type(commit: models.ComAtprotoSyncSubscribeRepos.Commit) -> Ops:
    """The example's `_get_ops_by_type`."""
    found: Ops = defaultdict(lambda: {"create": [], "update": [], "delete": []})
    car = CAR.from_bytes(_as_bytes(commit.blocks))
    for op in commit.ops:
        uri = AtUri.from_str(f"at://{commit.repo}/{op.path}")
        if op.action == "delete":
            found[uri.collection]["delete"].append({"uri": str(uri), "author": commit.repo})
            continue
        if not op.cid:
            continue
        info = {"uri": str(uri), "cid": str(op.cid), "author": commit.repo}
        raw = car.blocks.get(op.cid)
        if not raw:
            continue
        record = models.get_or_create(raw, strict=False)
        wanted = INTERESTED.get(uri.collection)
        if wanted and record is not None and models.is_record_type(record, wanted):
            found[uri.collection][op.action].append({"record": record, **info})
    return found


def posts_only(commit: models.ComAtprotoSyncSubscribeRepos.Commit) -> Ops:
    """The same by somebody who looks first: no CAR and no model unless the commit writes a post."""
    mine = [op for op in commit.ops if op.path.startswith(POSTS + "/")]
    if not mine:
        return {}
    return ops_by_type(commit.model_copy(update={"ops": mine}))


def _as_bytes(blocks: Any) -> bytes:
    assert isinstance(blocks, bytes)  # a str only where the frame came as JSON
    return blocks
