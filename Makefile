# Every target does all of its own set-up.
.PHONY: demo test long check fuzz soak mutants injections bench scale export-million image-steps over-workers picture format lock

SECONDS ?= 600
# Four workers and a thousand processes need not compile the same files.
export PYTHONDONTWRITEBYTECODE =

demo:
	@tools/setup.sh demo
	@.venv/bin/civicsky demo

# Side by side, then those that want the machine for themselves, if there are any (none may be among ARGS: exit code 5).
JOBS ?= 4
test:
	@tools/setup.sh test
	@.venv/bin/pytest -n $(JOBS) --dist worksteal -m "not alone and not long" $(ARGS)
	@! grep -rq --include='*.py' 'mark[.]alone' tests || .venv/bin/pytest -m "alone and not long" $(ARGS) || [ $$? = 5 ]

# What `make test` does shorter: the whole demo, the statistics with all their repeats, 120 schedules of faults. And new examples of
# properties, which `make test` does not look for: each time it tries the same.
long:
	@tools/setup.sh test
	@.venv/bin/pytest -m long $(ARGS)
	@[ -n "$(ARGS)" ] || SCHEDULES=100 INSTALLED=20 .venv/bin/pytest -n $(JOBS) --dist worksteal tests/acceptance/test_schedules.py
	@.venv/bin/pytest -n $(JOBS) --dist worksteal -m "(hypothesis or drawn) and not long" --hypothesis-profile explore $(ARGS)

check:
	@tools/setup.sh test
	@tools/check.sh

fuzz:
	@tools/setup.sh fuzz
	@tools/fuzz.sh $(SECONDS)

format:
	@tools/setup.sh test
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

lock:
	@tools/setup.sh test
	tools/lock.sh

# Hours of faults in three quarters of one: the soak, then 500 schedules, and 100 of the installed command.
MINUTES ?= 22
soak:
	@tools/setup.sh test
	.venv/bin/python tests/soak/soak.py --minutes $(MINUTES)
	SCHEDULES=500 INSTALLED=100 .venv/bin/pytest -s --timeout 7200 tests/acceptance/test_schedules.py

# The tests of labelling as they are, with label workers between asker and model. Some minutes.
LABELLING = tests/integration/test_slot.py tests/integration/test_label.py tests/integration/test_asked_in_vain.py \
	tests/integration/test_whole_way.py tests/integration/test_failed.py tests/acceptance/test_hostile_model.py \
	tests/acceptance/test_kill.py tests/acceptance/test_labels.py tests/acceptance/test_sample.py \
	tests/acceptance/test_outages.py tests/acceptance/test_faults.py tests/acceptance/test_gate_at_work.py \
	tests/acceptance/test_events.py
over-workers:
	@tools/setup.sh test
	PYTHONPATH=tests .venv/bin/pytest -p support.over_workers -n $(JOBS) --dist worksteal -m "not long" $(or $(ARGS),$(LABELLING))

mutants:
	@tools/setup.sh test
	.venv/bin/python tests/mutants/run.py $(ARGS)

# How many of forty posts dictate their own label: to the local model, or to another: ARGS='--model-url URL --model NAME'
injections:
	@tools/setup.sh demo
	@.venv/bin/python tests/injection/run.py $(ARGS)

# A store of 1,000,000 made-up posts, exported: seconds, and the peak of memory. Needs 2.5 GB of disk for a while.
export-million:
	@tools/setup.sh test
	@PYTHONPATH=tests .venv/bin/python bench/export_million.py $(ARGS)

# The Dockerfile's own steps in clean roots, and the service run in the last one. Needs root and a Debian mirror; two minutes.
image-steps:
	@tools/setup.sh image
	@PYTHONPATH=tests .venv/bin/python -m image.steps $(ARGS)

# How fast it is, beside what others do: prints, and writes bench/results.json and docs/performance.md. An hour, on an idle
# machine; ARGS='--only label --rounds 3' or ARGS=--quick.
bench:
	@tools/setup.sh test
	@PYTHONPATH=.:tests .venv/bin/python -m bench.run $(ARGS)

# docs/scale.md and its plots, from bench/results.json: what a home node can do, and what breaks first. Seconds; after `make bench`.
scale:
	@tools/setup.sh test
	@PYTHONPATH=.:tests .venv/bin/python -m bench.scaling

# docs/page.png anew: the page of a service on made-up posts, in a headless Chromium. Two minutes.
picture:
	@tools/setup.sh test
	@PYTHONPATH=tests .venv/bin/python -m support.picture docs/page.png
