"""What a shared request cost is divided among its posts so that nothing is lost, nor counted twice."""

from hypothesis import given, strategies as st

from civicsky.endpoint import Tokens
from civicsky.label import _Cost, abilities_of

COUNTS = st.integers(0, 2**40)


@given(calls=st.integers(0, 6), read=COUNTS, written=COUNTS, share=st.floats(0, 1), n=st.integers(1, 50))
def test_the_parts_of_a_shared_cost_sum_to_the_whole(calls: int, read: int, written: int, share: float, n: int) -> None:
    whole = _Cost(calls, Tokens(read, written, int(written * share), int(read * share)))
    parts = whole.shared(n)
    assert len(parts) == n
    assert _Cost.summed(parts) == whole
    for part in parts:
        assert part.tokens.cached <= part.tokens.read
        assert part.tokens.reasoning <= part.tokens.written
    assert max(part.tokens.read for part in parts) - min(part.tokens.read for part in parts) <= 1


def test_abilities_go_from_the_strictest_to_none_and_a_named_way_stays_what_it_is() -> None:
    assert abilities_of("auto") == ("schema+logprobs", "schema", "json+logprobs", "json", "plain+logprobs", "plain")
    assert abilities_of("json") == ("json+logprobs", "json")
