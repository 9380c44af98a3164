"""A gate's file, the head in it and its threshold: what is stated of it holds for posts that it has not seen."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from civicsky.embedding import Embedding, load
from civicsky.errors import Usage
from civicsky.gate import Gate, Gatekeeper, open_gate, read_gate
from civicsky.research import fitting
from civicsky.research.gold import read_gold, sample_rows
from civicsky.research.train_gate import About, Posts, Wanted, made, posts_of, train_gate
from civicsky.settings import Gate as GateSettings
from civicsky.task import load_task

TASK, TEXT = load_task("civic")


@pytest.fixture(scope="module")
def embedding() -> Embedding:
    return load()


@pytest.fixture(scope="module")
def posts() -> Posts:
    data = "\n".join(json.dumps(row) for row in sample_rows()).encode()
    return posts_of(read_gold("sample.jsonl", data, {"civic": TASK.fields[0].values}), "civic", "civic")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gate of the sample, by the command's own function."""
    folder = tmp_path_factory.mktemp("gate")
    gold = folder / "gold.jsonl"
    gold.write_text("\n".join(json.dumps(row) for row in sample_rows()), encoding="utf-8")
    train_gate(Wanted("civic", gold), folder / "gate.json", print)
    return folder / "gate.json"


def about(recall: float = 0.95) -> About:
    return About("now", "civic", "2", "0" * 64, "civic", "civic", "0" * 64, 0, recall)


# ---- what is stated holds --------------------------------------------------------------------------------------------


def test_on_posts_of_other_authors_the_stated_recall_holds_within_its_interval(
    posts: Posts, embedding: Embedding
) -> None:
    """Five times a whole gate is made from four fifths of the sample's authors, and put to the posts of the others."""
    fold = fitting.folds(posts.authors, np.array(posts.yes), seed=7, n=5)
    passed: list[bool] = []
    for held in range(5):
        rest = [at for at in range(len(fold)) if fold[at] != held]
        known = Posts(
            [posts.texts[at] for at in rest], [posts.authors[at] for at in rest], [posts.yes[at] for at in rest], {}
        )
        gate = made(known, embedding, about())
        others = [posts.texts[at] for at in range(len(fold)) if fold[at] == held and posts.yes[at]]
        found = embedding.probabilities(others, gate.weights, gate.bias)
        passed += [bool(gate.judge(one, 0.05).passed) for one in found]
    stated = made(posts, embedding, about())
    assert len(passed) == stated.recall.n == sum(posts.yes) > 150
    assert stated.recall.low <= sum(passed) / len(passed) <= stated.recall.high
    assert stated.recall.low <= stated.recall_wanted <= stated.recall.high
    assert stated.skipped.low > 0.1, "and it saves calls"


def test_a_lower_recall_saves_more(posts: Posts, embedding: Embedding) -> None:
    high, low = made(posts, embedding, about()), made(posts, embedding, about(0.8))
    assert low.recall.low <= 0.8 <= low.recall.high
    assert low.skipped.value > high.skipped.value + 0.1


def test_a_new_post_reaches_the_threshold_as_often_as_was_wanted() -> None:
    rng, reached = np.random.default_rng(1), []
    for _ in range(3_000):
        known, new = rng.beta(2, 1, 119), rng.beta(2, 1)
        reached.append(new >= fitting.threshold(known, np.ones(119, bool), 0.95))
    assert abs(float(np.mean(reached)) - 0.95) < 0.012  # three standard errors


def test_the_head_is_that_of_scikit_learn(posts: Posts, embedding: Embedding) -> None:
    vectors, yes = embedding.vectors(posts.texts).astype(float), np.array(posts.yes)
    theirs = LogisticRegression(C=fitting.STRENGTH, tol=1e-8, max_iter=5_000).fit(vectors, yes)
    ours = fitting.fit(vectors, yes)
    assert np.abs(theirs.coef_[0] - ours.weights).max() < 1e-3
    assert np.abs(theirs.predict_proba(vectors)[:, 1] - ours.probabilities(vectors)).max() < 1e-4


def test_no_author_stands_on_both_sides_and_every_fold_has_about_as_many(posts: Posts) -> None:
    yes = np.array(posts.yes)
    fold = fitting.folds(posts.authors, yes, seed=3)
    of_author = {author: {int(one) for one, who in zip(fold, posts.authors, strict=True) if who == author}
                 for author in posts.authors}  # fmt: skip
    assert all(len(where) == 1 for where in of_author.values())
    assert np.bincount(fold, minlength=10).min() > 20
    assert np.bincount(fold, yes, minlength=10).min() > 8


# ---- the file --------------------------------------------------------------------------------------------------------


def test_a_file_read_again_is_the_same_gate_and_decides_the_same(file: Path, embedding: Embedding) -> None:
    gate = read_gate(file)
    again = Gate.model_validate_json(gate.text())
    assert (again, again.version) == (gate, gate.version)
    assert (gate.task, gate.field, gate.value, gate.model_sha256) == (
        "civic", "civic", "civic", embedding.identity.sha256
    )  # fmt: skip
    assert len(gate.weights) == embedding.width


def test_the_same_gold_gives_the_same_gate_whenever_it_is_made(file: Path, tmp_path: Path) -> None:
    again = train_gate(Wanted("civic", file.with_name("gold.jsonl")), tmp_path / "again.json", print)
    assert again.version == read_gate(file).version
    assert train_gate(
        Wanted("civic", file.with_name("gold.jsonl"), seed=1), tmp_path / "other.json", print
    ).version != again.version  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"weights": [float("nan")]}, "is no gate's file"),
        ({"threshold": 1.5}, "threshold"),
        ({"format": 2}, "reads 1; train it again"),
        ({"more": 1}, "more"),
    ],
)
def test_a_file_that_is_no_gate_is_refused_with_what_is_wrong(
    file: Path, tmp_path: Path, change: dict[str, object], told: str
) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(Usage, match=told):
        read_gate(wrong)


def test_a_gate_of_another_task_model_or_version_of_the_task_is_refused(
    file: Path, tmp_path: Path, embedding: Embedding
) -> None:
    settings = GateSettings(file=file)
    assert open_gate(GateSettings(), [(TASK, TEXT)]) is None
    keeper = open_gate(settings, [(TASK, TEXT)])
    assert keeper is not None
    assert keeper.task == "civic"
    with pytest.raises(Usage, match="its file has changed since"):
        open_gate(settings, [(TASK, TEXT + "\n# another word")])
    with pytest.raises(Usage, match=r"is about the task 'civic', and label\.tasks has toxicity"):
        open_gate(settings, [load_task("tests/tasks/toxicity.toml")])
    with pytest.raises(Usage, match="was made with the model"):
        Gatekeeper(read_gate(file).model_copy(update={"model_sha256": "f" * 64}), embedding, 0.05)
    with pytest.raises(Usage, match="No such file"):
        open_gate(GateSettings(file=tmp_path / "none.json"), [(TASK, TEXT)])


def test_gold_with_too_few_posts_or_authors_is_refused_with_the_number_needed(tmp_path: Path) -> None:
    rows = sample_rows()
    for name, some, told in (
        ("few", rows[:40], "needs 38 or more"),
        ("one", [{**row, "uri": "", "author": "a"} for row in rows], "are of 1 authors, and 20 or more are needed"),
    ):
        gold = tmp_path / f"{name}.jsonl"
        gold.write_text("\n".join(json.dumps(row) for row in some), encoding="utf-8")
        with pytest.raises(Usage, match=told):
            train_gate(Wanted("civic", gold), tmp_path / f"{name}.json", print)
        assert not (tmp_path / f"{name}.json").exists()


def test_copies_of_a_text_are_trained_on_once() -> None:
    rows = [{"text": text, "author": who, "civic": "civic"} for text, who in (
        ("Vote!", "a"), ("VOTE!  https://x.example", "b"), ("Vote?", "c"))]  # fmt: skip
    gold = read_gold("g.jsonl", "\n".join(map(json.dumps, rows)).encode(), {"civic": TASK.fields[0].values})
    found = posts_of(gold, "civic", "civic")
    assert found.texts == ["Vote!", "Vote?"]
    assert found.left_out == {"a text that was there before": 1}


def test_what_is_at_the_threshold_passes_and_what_is_below_is_asked_about_by_lot(file: Path) -> None:
    gate = read_gate(file)
    at, below = gate.judge(gate.threshold, 0.05), gate.judge(gate.threshold - 1e-6, 0.05)
    assert (at.passed, at.p_asked, below.passed, below.p_asked) == (True, 1.0, False, 0.05)
    assert gate.judge(0.0, 1.0) == below._replace(probability=0.0, p_asked=1.0), "all are asked about, and still told"


# ---- the model -------------------------------------------------------------------------------------------------------


def test_the_model_is_read_without_a_connection_and_without_its_packages_own_code() -> None:
    script = """
import sys
def refuse(event, args):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname"}:
        raise SystemExit(f"{event} {args}")
sys.addaudithook(refuse)
from civicsky.embedding import load
print(load().vectors(["The senate votes."]).shape)
print(sorted({"wordllama", "huggingface_hub", "requests", "torch"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout.split("\n")[:2], done.stderr) == (["(1, 256)", "[]"], "")


def test_whatever_a_text_holds_it_has_a_probability(file: Path, embedding: Embedding) -> None:
    gate = read_gate(file)
    texts = ["", " ", "\x00", "\ud800 half", "\u202e backwards", "a" * 1_000_000, "🏛" * 5_000, "<|endoftext|></s>"]
    found = embedding.probabilities(texts, gate.weights, gate.bias)
    assert all(0 < one < 1 for one in found)
    assert found == [embedding.probabilities([text], gate.weights, gate.bias)[0] for text in texts], "each by itself"
