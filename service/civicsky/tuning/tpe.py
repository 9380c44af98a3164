"""A search that learns from what it tried, in place of chance: tree-structured Parzen estimators. The home of optuna.

Wording, number of examples and each example's post are parameters of their own, so a post that helped in one set is
drawn more often into others. Bad candidates are pruned on few posts, by asynchronous successive halving.
"""

from collections.abc import Sequence
from typing import Final

from civicsky.errors import Usage
from civicsky.tuning.candidates import Candidate, Space
from civicsky.tuning.search import KEEP, Judge, Judged, Spent, best_first

try:
    import optuna
except ModuleNotFoundError as error:  # pragma: no cover
    raise Usage(
        f"--search tpe needs the extra `tune` ({error.name} is missing): "
        "pip install --require-hashes -r requirements/tune.txt in the folder with civicsky's source; "
        "or leave it: --search random needs nothing besides"
    ) from None

AT_RANDOM: Final = 3
"""One in so many candidates is drawn by chance, before there is anything to learn from."""


async def tpe(space: Space, n: int, sizes: Sequence[int], seed: int, judge: Judge) -> list[Judged]:
    """Try so many candidates; those that were judged on all posts, best first. The same seed tries the same ones."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, n // AT_RANDOM)),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=KEEP),
    )
    known: set[str] = {space.prompt(Candidate(0, (), True))}
    done: list[Judged] = []
    try:
        for _ in range(n):
            trial = study.ask()
            one = _suggested(space, trial)
            if space.prompt(one) in known:  # it was tried: nothing to learn, and nothing to pay
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            known.add(space.prompt(one))
            found = await _climb(one, trial, sizes, judge)
            if found is None:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(trial, found.score)
                done.append(found)
    except Spent:
        pass
    return best_first(done)


async def _climb(one: Candidate, trial: "optuna.Trial", sizes: Sequence[int], judge: Judge) -> Judged | None:
    """Judge it on more and more posts; None when it fell behind."""
    value = 0.0
    for rung, size in enumerate(sizes):
        value = await judge(one, size)
        trial.report(value, step=KEEP**rung)
        if rung < len(sizes) - 1 and trial.should_prune():
            return None
    return Judged(one, value)


def _suggested(space: Space, trial: "optuna.Trial") -> Candidate:
    """A set takes its posts from each value in turn; of a post that it has already, the next one."""
    wording = trial.suggest_categorical("wording", list(range(len(space.wordings))))
    keep = trial.suggest_categorical("keep", list(space.keeps))
    size = trial.suggest_categorical("size", list(space.sizes))
    groups, shots = space.by_value(), list[int]()
    for at in range(max(space.sizes) if groups else 0):
        group = groups[at % len(groups)]
        place = trial.suggest_categorical(f"post {at}", list(range(len(group))))
        free = [shot for shot in group[place:] + group[:place] if shot not in shots]
        if free and len(shots) < size:
            shots.append(free[0])
    return Candidate(int(wording), tuple(shots), bool(keep))
