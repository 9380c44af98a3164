"""What must not get slower by far: ratios of processor time, with wide bounds; `make bench` measures."""

import statistics

from bench import decode
from bench.part import Ask, gather

WIDE = {
    "ours over the SDK's documented way, frames/s": 5.0,
    "ours over libipld decode_dag_cbor_multi and decode_car, frames/s": 1.5,
}
"""A third of what is measured on an idle machine, or less."""


def test_decoding_is_several_times_faster_than_the_ways_that_it_takes_the_place_of() -> None:
    measured = gather(decode.PART, decode.rounds(Ask(rounds=3, scale=0.5, quick=True)))
    found = {name: statistics.median(measured.ratios[name].values) for name in WIDE}
    assert {name: ratio for name, ratio in found.items() if ratio < WIDE[name]} == {}
