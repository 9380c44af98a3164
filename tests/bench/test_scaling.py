"""What docs/scale.md reckons with: the simulated queues against queueing theory, the sums against sums done by hand."""

import math
from pathlib import Path
from random import Random
from statistics import fmean

import pytest

from bench import results
from bench.run import ROOT
from bench.scaling import needs, page, queues
from docs.pages import page as text_of

PARTS = results.read(ROOT / "bench" / "results.json")


def erlang_c(servers: int, load: float) -> float:
    """The probability of having to wait, M/M/c; `load` in servers."""
    terms = [load**k / math.factorial(k) for k in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(terms) + last)


def machine_repair(slots: int, away: float, cost: float) -> float:
    """Answers a second of a closed queue, both times exponential: from the chance that nobody is in the queue."""
    idle = 1 / sum(math.factorial(slots) / math.factorial(slots - k) * (cost / away) ** k for k in range(slots + 1))
    return (1 - idle) / cost


@pytest.mark.parametrize(("servers", "busy"), [(1, 0.5), (4, 0.7), (16, 0.8)])
def test_the_mean_wait_is_erlangs(servers: int, busy: float) -> None:
    rng = Random(1)
    rate = busy * servers
    found = queues.waits(queues.by_chance(rng, 1 / rate), queues.by_chance(rng, 1.0), servers, 120_000)
    assert fmean(found) == pytest.approx(erlang_c(servers, rate) / (servers - rate), rel=0.08)


def test_the_mean_wait_for_services_of_equal_length_is_pollaczeks_and_khinchines() -> None:
    rng = Random(2)
    found = queues.waits(queues.by_chance(rng, 1 / 0.7), queues.always(1.0), 1, 120_000)
    assert fmean(found) == pytest.approx(0.7 / (2 * (1 - 0.7)), rel=0.05)


def test_waits_by_hand() -> None:
    assert queues.waits(queues.always(1.0), queues.always(3.0), 2, 6) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("slots", "away", "cost"), [(4, 0.2, 0.05), (16, 0.2, 0.0125), (64, 0.05, 0.0016)])
def test_answers_a_second_are_those_of_the_closed_queue_of_theory(slots: int, away: float, cost: float) -> None:
    rng = Random(3)
    found = queues.answers_a_second(slots, queues.by_chance(rng, away), queues.by_chance(rng, cost), 80_000)
    assert found == pytest.approx(machine_repair(slots, away, cost), rel=0.03)


def test_answers_a_second_are_bound_by_calls_in_flight_and_then_by_the_processor() -> None:
    own = 0.001
    few = queues.answers_a_second(4, queues.always(0.2), queues.always(own), 4_000)
    many = queues.answers_a_second(2_000, queues.always(0.2), queues.always(own), 20_000)
    assert few == pytest.approx(4 / (0.2 + own), rel=0.01)
    assert many == pytest.approx(1 / own, rel=0.01)


def test_what_waits_by_hand() -> None:
    assert queues.waiting([10, 0, 5, 30, 0, 0], 8) == [2, 0, 0, 22, 14, 6]


def test_a_day_has_the_posts_that_its_mean_says_the_busiest_hour_at_six_and_its_surge() -> None:
    posts = queues.day(Random(4), 25, 36)
    assert sum(posts) == pytest.approx(25 * 86_400, rel=0.005)
    assert sum(posts[1065:1095]) == pytest.approx(36 * 1_800, rel=0.02)
    surged = queues.day(Random(4), 25, 36, (3, 4, 10))
    assert sum(surged[180:240]) == pytest.approx(10 * sum(posts[180:240]), rel=0.05)
    assert surged == queues.day(Random(4), 25, 36, (3, 4, 10)), "the same each time"


def test_a_gpus_labels_by_hand() -> None:
    gpu = needs.Gpu("one", flops=160e12, bandwidth=1_600e9)
    # Reads .4 x 160e12 / 16e9 = 4,000 tokens/s; writes .6 x 1,600e9 / 16e9 x 64 = 3,840 tokens/s.
    assert needs.labels_a_second(gpu, 2_000, 0) == pytest.approx(2)
    assert needs.labels_a_second(gpu, 0, 384) == pytest.approx(10)
    assert needs.labels_a_second(gpu, 2_000, 384) == pytest.approx(1 / 0.6)
    assert needs.gpus(14, 2.0) == 10
    assert needs.gpus(0.1, 2.0) == 1


def test_how_long_a_call_takes_on_a_busy_gpu_by_hand() -> None:
    gpu = needs.Gpu("one", flops=160e12, bandwidth=1_600e9)
    # Alone .5 s to read 2,000 tokens; 384 answers' tokens of 16 GB each at 960 GB/s: 6.4 s to write.
    assert needs.call_seconds(gpu, 0, 384, 10) == pytest.approx(6.4)
    assert needs.call_seconds(gpu, 2_000, 384, 1) == pytest.approx(12.8)
    full = needs.labels_a_second(gpu, 2_000, 384)
    assert needs.in_flight(full, needs.call_seconds(gpu, 2_000, 384, full)) == pytest.approx(needs.AT_ONCE)


@pytest.mark.parametrize(("servers", "busy"), [(4, 0.7), (4, 0.9), (16, 0.9)])
def test_how_long_most_wait_is_what_a_simulation_of_enough_calls_finds(servers: int, busy: float) -> None:
    rng = Random(5)
    between = queues.by_chance(rng, 1 / (busy * servers))
    found = sorted(queues.waits(between, queues.by_chance(rng, 1.0), servers, 250_000))
    assert found[int(0.99 * len(found))] == pytest.approx(needs.waits_at_most(servers, busy), rel=0.12)


def test_nobody_waits_where_slots_are_many() -> None:
    assert needs.waits_at_most(64, 0.5) == 0


def test_what_the_disk_takes_by_hand() -> None:
    posts = 25 * 0.45 * 86_400
    assert needs.bytes_a_day(20_000) == pytest.approx(posts * 1_840 + 20_000 * 4_000)
    assert needs.bytes_a_day(times=10) == pytest.approx(10 * posts * 5_840)


def test_both_halves_in_one_process_are_full_when_their_shares_add_up_to_one() -> None:
    found = {stage.name: stage for stage in page.stages(PARTS)}
    both = found["`run`: both halves in one process"].share(7)
    parts = found["labelling, the home node's processor"].share(7) + found["collecting, websockets"].share(7)
    assert both == pytest.approx(parts)


def test_what_is_replayed_is_bound_by_the_network_too() -> None:
    assert needs.replayed({"collect": {"figures": {"civicsky with picows, TLS": {"median": 9e9}}}}) == 25_000
    assert needs.replayed({"collect": {"figures": {"civicsky with picows, TLS": {"median": 10.0}}}}) == 10


def test_littles_law_and_how_long_catching_up_takes_by_hand() -> None:
    assert needs.in_flight(16, 0.5) == 8
    assert needs.catch_up_hours(24, 1_000, 9_000) == 3
    assert needs.catch_up_hours(24, 9_000, 9_000) == math.inf


def test_each_stage_is_full_where_its_share_is_one_and_the_first_to_break_stands_first() -> None:
    found = page.stages(PARTS)
    for stage in found:
        assert stage.share(stage.breaks_at) == pytest.approx(1)
    assert [one.breaks_at for one in found] == sorted(one.breaks_at for one in found)
    (network,) = (one for one in found if one.name.startswith("network"))
    assert network.wanted == pytest.approx(450 * 36 / 25 * 5_000 * 8 / 1e6)


def test_what_workers_cost_is_a_part_of_its_own_once_it_was_measured() -> None:
    names = [one.name for one in page.stages({**PARTS, "workers": {"figures": {}}})]
    figures = {f"{n} workers: CPU of the home node a post": {"median": ms} for n, ms in ((1, 5.0), (8, 2.5))}
    added = [one for one in page.stages({**PARTS, "workers": {"figures": figures}}) if one.name not in names]
    assert [one.name for one in added] == ["`run`, by way of workers", "labelling, by way of workers"]
    assert added[1].capacity == pytest.approx(400)
    assert added[0].capacity == pytest.approx(1 / (1 / 400 + 40 / needs.median(PARTS, "collect", "civicsky, TLS")))


def test_what_nats_and_a_full_home_node_took_is_told_once_it_was_measured() -> None:
    assert "not measured yet" in page.render("{{nats}}", {**PARTS, "workers": {"figures": {}}})
    full = {"home node full": 400.0, "home node full: CPU of the home node a post": 2.0,
            "home node full: CPU of nats-server a post": 0.1,
            "home node full: CPU of its worker a post": 0.8}  # fmt: skip
    figures = {name: {"median": value} for name, value in full.items()}
    parts = {**PARTS, "workers": {"figures": figures, "load": {"not_idle": ""}}}
    assert (
        page.render("{{nats}}", parts)
        == "For each label it took 0.1 ms (measured), so 16 % of a processor at 100 times."
    )
    told = page.render("{{workers}}", parts)
    assert "400 answers/s" in told
    assert "ask for some 1,250 a second" in told
    found = {stage.name: stage.capacity for stage in page.stages(parts)}
    assert found["labelling, by way of workers"] == pytest.approx(500)
    assert found["one nats-server"] == pytest.approx(10_000)


def test_the_page_and_its_plots_are_what_the_figures_give(tmp_path: Path) -> None:
    """If not: `make scale`."""
    page.write(tmp_path, PARTS)
    assert (tmp_path / page.NAME).read_text(encoding="utf-8") == text_of("docs/scale.md")
    drawn = sorted(file.name for file in tmp_path.glob("*.svg"))
    assert drawn == sorted(file.name for file in (ROOT / "docs").glob("scale-*.svg"))
    assert all(f"]({name})" in text_of("docs/scale.md") for name in drawn)


def test_a_page_without_figures_of_workers_says_so_and_one_without_the_others_cannot_be_made() -> None:
    told = page.render("{{workers}}", {**PARTS, "workers": {"figures": {}}})
    assert told.startswith("Not measured yet")
    with pytest.raises(KeyError):
        page.render("{{stages}}", {})
