from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from civicsky.errors import Usage
from civicsky.model import FieldLabel
from civicsky.task import (
    CONTEXT_PARTS,
    Boundary,
    Example,
    Field,
    Task,
    Words,
    applicable,
    applies,
    context_text,
    file_hash,
    load_task,
    load_tasks,
)
from support.tried import tried

CIVIC, TEXT = load_task("civic")
TOXICITY = Path(__file__).parents[1] / "tasks" / "toxicity.toml"

TOPIC = Field(name="topic", values=("civic", "other"), description="What about?")
LEAN = Field(
    name="lean", values=("left", "right", "unclear"), description="", only_if={"topic": "civic"}, unclear="unclear"
)
DEGREE = Field(name="degree", values=("low", "high"), description="", only_if={"lean": "left"})
SMALL = Task(name="small", version="1", definition="Say it.", fields=(TOPIC, LEAN))


# ---- the task that ships with civicsky -------------------------------------------------------------------------------


def test_the_task_asks_for_civic_lean_and_us_politics() -> None:
    assert (CIVIC.name, CIVIC.version, CIVIC.reasoning, CIVIC.reason) == ("civic", "2", "off", False)
    assert {field.name: field.values for field in CIVIC.fields} == {
        "civic": ("civic", "not civic"),
        "lean": ("left-leaning", "moderate", "right-leaning", "unclear"),
        "us_politics": ("yes", "no", "unclear"),
    }
    assert [field.only_if for field in CIVIC.fields] == [{}, {"civic": "civic"}, {"civic": "civic"}]
    assert [field.unclear for field in CIVIC.fields] == [None, "unclear", "unclear"]


def test_the_first_letters_of_the_tasks_words_tell_them_apart() -> None:
    assert [words.field for words in CIVIC.words] == ["civic", "lean"]
    for words in CIVIC.words:  # a first token may be no more than that
        assert len({word[:3] for word in words.values}) == len(words.values)


def test_the_tasks_cases_show_every_value_and_favour_no_side() -> None:
    assert len(CIVIC.boundaries) >= 10
    assert 6 <= len(CIVIC.examples) <= 8
    both: tuple[Sequence[Boundary | Example], ...] = (CIVIC.boundaries, CIVIC.examples)
    for cases in both:
        leans = [case.answer.get("lean") for case in cases]
        assert abs(leans.count("left-leaning") - leans.count("right-leaning")) <= 1
        assert {case.answer["civic"] for case in cases} == {"civic", "not civic"}
    said = [case.answer.get("lean") for cases in both for case in cases]
    assert set(said) == {*CIVIC.fields[1].values, None}


def test_no_case_of_the_task_is_a_post_of_the_packaged_sample() -> None:
    sample = (Path(__file__).parents[2] / "service/civicsky/data/sample/truth.jsonl").read_text(encoding="utf-8")
    for post in [case.post for case in CIVIC.boundaries] + [example.post for example in CIVIC.examples]:
        assert post[:25] not in sample


# ---- task files ------------------------------------------------------------------------------------------------------

TOP = """
name = "t"
version = "1"
definition = "d"
"""
GOOD = TOP + '[[fields]]\nname = "a"\nvalues = ["x", "y"]\ndescription = "?"\n'
SECOND = '[[fields]]\nname = "b"\nvalues = ["u", "v"]\ndescription = "?"\n'
THIRD = SECOND.replace('"b"', '"c"')
CASE = '[[boundaries]]\npost = "p"\nanswer = {a = "x"}\nwhy = "w"\n'
EXAMPLE = '[[examples]]\npost = "p"\nanswer = {a = "x"}\n'
WORDS = '[[words]]\nfield = "a"\nask = "{post}"\nexamples = [["p", "ex"]]\nvalues = {ex = "x", why = "y"}\n'


def loaded(folder: Path, text: str) -> Task:
    (folder / "t.toml").write_text(text, encoding="utf-8")
    task, read = load_task(str(folder / "t.toml"))
    assert read == text
    return task


def test_a_task_file_is_read(tmp_path: Path) -> None:
    assert loaded(tmp_path, GOOD + EXAMPLE + WORDS) == Task(
        name="t",
        version="1",
        definition="d",
        fields=(Field(name="a", values=("x", "y"), description="?"),),
        examples=(Example(post="p", answer={"a": "x"}),),
        words=(Words(field="a", ask="{post}", values={"ex": "x", "why": "y"}, examples=(("p", "ex"),)),),
    )


def test_a_task_of_ones_own_is_loaded_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    task, text = load_task(str(TOXICITY))
    assert (task.name, task.reason, [field.name for field in task.fields]) == ("toxicity", True, ["toxic"])
    assert file_hash(text) == file_hash(TOXICITY.read_text(encoding="utf-8")) != file_hash(text + " ")
    monkeypatch.chdir(TOXICITY.parent)
    assert load_task("toxicity.toml") == load_task("./toxicity.toml") == (task, text)
    monkeypatch.setenv("HOME", str(TOXICITY.parent))
    assert load_task("~/toxicity.toml") == (task, text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name = ", "not valid TOML in UTF-8, correct it: Invalid value"),
        ("a = " + "[" * 10_000, "not valid TOML in UTF-8, correct it: "),
        ("", "name: is missing; add it"),
        (GOOD.replace('version = "1"', ""), "version: is missing; add it"),
        (GOOD.replace('version = "1"', "version = 1"), "version: must be text; put it in quotation marks"),
        (GOOD.replace('version = "1"', 'version = " "'), "version: is empty; say something there"),
        (GOOD.replace('"d"', '""'), "definition: is empty; say something there"),
        (GOOD + "colour = 1\n", "fields.0.colour: there is no such key in a task file; remove it, or correct"),
        ("colour = 1\n" + GOOD, "colour: there is no such key in a task file; remove it, or correct its name"),
        (GOOD.replace('name = "t"', 'name = "T t"'), "name: 'T t' must be lower-case letters"),
        (GOOD.replace('name = "a"', 'name = "a-b"'), "fields.0.name: 'a-b' must be lower-case letters"),
        (GOOD.replace('name = "a"', 'name = ""'), "fields.0.name: '' must be lower-case letters"),
        (GOOD.replace('name = "a"', f'name = "{"a" * 41}"'), "must be lower-case letters, digits and underscores, 40"),
        (GOOD.replace('name = "a"', 'name = "id"'), "fields.0.name: 'id' has a meaning of its own in an answer; name"),
        (GOOD.replace('name = "a"', 'name = "reason"'), "fields.0.name: 'reason' has a meaning of its own"),
        (GOOD.replace('["x", "y"]', '"x"'), "fields.0.values: "),
        (GOOD.replace('["x", "y"]', '["x"]'), "fields.0.values: there must be two values or more, each once; add"),
        (GOOD.replace('["x", "y"]', '["x", "x"]'), "fields.0.values: there must be two values or more, each once"),
        (GOOD.replace('["x", "y"]', '["x", " y"]'), "fields.0.values: ' y' is empty or has blanks around it"),
        (GOOD.replace('["x", "y"]', '["x", ""]'), "fields.0.values: '' is empty or has blanks around it"),
        (GOOD.replace('["x", "y"]', '["x", "a\\nb"]'), "control characters; take them out"),
        (TOP + "fields = []", "fields: there is none; add a [[fields]] table"),
        (GOOD + 'unclear = "z"\n', "fields.0.unclear: 'z' is not among the field's values; add it there"),
        (GOOD + 'only_if = {b = "x"}\n', "fields.0.only_if: there is no field 'b' above this one; name one of []"),
        (GOOD + 'only_if = {b = "u"}\n' + SECOND, "fields.0.only_if: there is no field 'b' above this one"),
        (GOOD + 'only_if = {a = "x"}\n', "fields.0.only_if: there is no field 'a' above this one"),
        (
            GOOD + SECOND + 'only_if = {a = "z"}\n',
            "fields.1.only_if: the field 'a' has no value 'z'; name one of ['x', 'y']",
        ),
        (GOOD + SECOND.replace('"b"', '"a"'), "fields.1.name: there is a field 'a' already; give each its own name"),
        (GOOD + CASE.replace('"w"', '""'), "boundaries.0.why: is empty; say something there"),
        (GOOD + CASE.replace('"p"', '"\\n"'), "boundaries.0.post: is empty; say something there"),
        (GOOD + CASE.replace('why = "w"', ""), "boundaries.0.why: is missing; add it"),
        (GOOD + CASE.replace('"x"', '"z"'), "boundaries.0.answer.a: there is no value 'z'; give it one of ['x', 'y']"),
        (GOOD + EXAMPLE.replace('"p"', '""'), "examples.0.post: is empty; say something there"),
        (GOOD + EXAMPLE.replace('"x"', "1"), "examples.0.answer.a: must be text; put it in quotation marks"),
        (
            GOOD + EXAMPLE + EXAMPLE.replace('a = "x"', ""),
            "examples.1.answer.a: is missing and applies; give it one of ['x', 'y']",
        ),
        (
            GOOD + EXAMPLE.replace('"x"', '"x", z = "y"'),
            "examples.0.answer.z: there is no such field; name one of ['a']",
        ),
        (
            GOOD + SECOND + 'only_if = {a = "y"}\n' + EXAMPLE.replace('"x"', '"x", b = "u"'),
            "examples.0.answer.b: the field does not apply to this answer (only_if); leave it out",
        ),
        (
            GOOD + SECOND + 'only_if = {a = "x"}\n' + EXAMPLE,
            "examples.0.answer.b: is missing and applies; give it one of ['u', 'v']",
        ),
        ("reason = true\n" + GOOD + EXAMPLE, "examples.0.reason: is missing; the task has reason = true"),
        (GOOD + EXAMPLE + 'reason = "r"\n', "examples.0.reason: nobody asks for it; take it out, or set reason = true"),
        ('reason = "yes please"\n' + GOOD, "reason: Input should be a valid boolean"),
        ('reasoning = "high"\n' + GOOD, "reasoning: Input should be 'off' or 'low'"),
        ('context_format = ""\n' + GOOD, "context_format: the placeholders are missing, doubled, or two on a line"),
        ('context_format = "{quote}\\n{quote}"\n' + GOOD, "context_format: the placeholders are missing, doubled"),
        ('context_format = "{quote} {root}"\n' + GOOD, "context_format: the placeholders are missing, doubled"),
        ('context_format = "{post}"\n' + GOOD, "context_format: there is no placeholder {post}; write {quote}, {root}"),
        ('context_format = "{quote!r}"\n' + GOOD, "context_format: there is no placeholder {quote!r}; write {quote}"),
        ('context_format = "{{quote}}"\n' + GOOD, "context_format: a brace stands alone; write {quote}, {root}"),
        ('context_format = "{quote"\n' + GOOD, "context_format: a brace stands alone; write {quote}, {root}"),
        (GOOD + WORDS.replace('"a"', '"b"'), "words.0.field: words ask for the field 'b', which there is not; add it"),
        (GOOD + WORDS.replace('"x"', '"z"'), "words.0.values: words give the field 'a' the value 'z', which it has"),
        (GOOD + WORDS.replace('"y"', '"x"'), "words.0.values: the words must stand for two values or more; add some"),
        (GOOD + WORDS.replace("why", "Why"), "words.0.values: 'Why' must be in lower case without blanks around it"),
        (GOOD + WORDS.replace("why", '" why"'), "words.0.values: ' why' must be in lower case without blanks"),
        (GOOD + WORDS.replace('"ex"', '"no"'), "words.0.examples.0: 'no' is not among the words; answer with one of"),
        (GOOD + WORDS.replace("{post}", "Topic:"), "words.0.ask: the post is missing; put {post}"),
        (GOOD + WORDS.replace("{post}", ""), "words.0.ask: the post is missing; put {post}"),
        (GOOD + WORDS + WORDS, "words: must be one table a field, in the order of the fields; put them into that"),
        (
            GOOD + SECOND + WORDS.replace('"a"', '"b"').replace('"x"', '"u"').replace('"y"', '"v"') + WORDS,
            "words: must be one table a field, in the order of the fields; put them into that order",
        ),
        (GOOD + SECOND + WORDS, "fields.1: 'b' can never be answered with words; add words for it, or give it a"),
    ],
)
def test_a_bad_task_file_is_refused_and_the_reason_told(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(Usage) as caught:
        loaded(tmp_path, text)
    assert str(caught.value).startswith(f"task file {tmp_path / 't.toml'}: ")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        GOOD + SECOND + 'only_if = {a = "x"}\nunclear = "v"\n' + EXAMPLE.replace('"x"', '"y"'),
        GOOD + SECOND + 'unclear = "v"\n' + WORDS,
        "reason = true\n" + GOOD + EXAMPLE + 'reason = "r"\n' + CASE,
        'context_format = "Only {root}!"\n' + GOOD,
        GOOD + SECOND + 'only_if = {a = "x"}\n' + THIRD + 'only_if = {b = "u"}\n' + EXAMPLE.replace('"x"', '"y"'),
    ],
)
def test_a_task_file_that_holds_to_the_rules_is_taken(tmp_path: Path, text: str) -> None:
    assert loaded(tmp_path, text).name == "t"


def test_a_task_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(Usage) as caught:
        load_task(str(tmp_path / "none.toml"))
    assert "none.toml: No such file or directory; name a task file that is there" in str(caught.value)
    with pytest.raises(Usage, match=r"Is a directory; name a task file"):
        load_task(f"{tmp_path}/")
    with pytest.raises(Usage, match=r"not valid TOML in UTF-8, correct it: embedded null byte"):
        load_task("a\0.toml")
    (tmp_path / "t.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(Usage, match=f"task file {tmp_path / 't.toml'}: not valid TOML in UTF-8, correct it: "):
        load_task(str(tmp_path / "t.toml"))


@pytest.mark.parametrize("name", ["no_such_task", "", "Civic", "civic "])
def test_a_task_that_does_not_ship_is_not_looked_for_elsewhere(name: str) -> None:
    with pytest.raises(Usage) as caught:
        load_task(name)
    assert str(caught.value) == (
        f"task {name!r}: no such task ships with civicsky; name one of ['civic'], or the path of a task file (.toml)"
    )


def test_two_tasks_must_not_share_a_name() -> None:
    assert [task.name for task, _ in load_tasks(["civic", str(TOXICITY)])] == ["civic", "toxicity"]
    with pytest.raises(Usage) as caught:
        load_tasks(["civic", str(TOXICITY), "civic"])
    assert str(caught.value) == ("label.tasks: 'civic' is the second task with the name 'civic'; rename or remove one")


# ---- which fields apply ----------------------------------------------------------------------------------------------


def test_a_field_applies_when_all_that_it_depends_on_is_so() -> None:
    civic, other = {"topic": FieldLabel("civic", None)}, {"topic": FieldLabel("other", 0.9)}
    assert [applies(TOPIC, {}), applies(LEAN, civic), applies(LEAN, other), applies(LEAN, {})] == [
        True,
        True,
        False,
        False,
    ]
    lean = {"lean": FieldLabel("left", None)}
    assert applicable(SMALL, {**lean, **civic}) == {**civic, **lean}
    assert list(applicable(SMALL, {**lean, **civic})) == ["topic", "lean"]
    assert applicable(SMALL, {**lean, **other}) == other
    assert applicable(SMALL, lean) == {}


def test_a_field_that_depends_on_one_that_does_not_apply_does_not_apply() -> None:
    chain = SMALL.model_copy(update={"fields": (TOPIC, LEAN, DEGREE)})
    said = {"lean": FieldLabel("left", None), "degree": FieldLabel("high", None)}
    other, civic = {"topic": FieldLabel("other", None)}, {"topic": FieldLabel("civic", None)}
    assert applicable(chain, {**other, **said}) == other
    assert applicable(chain, {**civic, **said}) == {**civic, **said}


# ---- what stands around a post ---------------------------------------------------------------------------------------


def test_a_line_of_the_context_without_its_part_is_left_out() -> None:
    form = {"context_format": "Thread:\n- {root} (first)\n- {parent}\n{quote}"}
    task = CIVIC.model_copy(update=form)
    assert context_text(task, {}) == context_text(task, {"root": "", "alts": "x"}) == ""
    assert context_text(task, {"root": "R"}) == "Thread:\n- R (first)"
    assert context_text(task, {"quote": "Q", "parent": "P", "root": "R"}) == "Thread:\n- R (first)\n- P\nQ"


def test_the_default_context_names_every_part() -> None:
    shown = context_text(CIVIC, dict(zip(CONTEXT_PARTS, "QRP", strict=True)))
    assert shown == "Quoted post: Q\nFirst post of the thread: R\nPost that it answers: P"


@tried(100)
@given(st.text(min_size=1), st.text(min_size=1))
def test_placeholders_inside_a_post_are_never_filled_in(root: str, parent: str) -> None:
    task = CIVIC.model_copy(update={"context_format": "<{root}>\n<{parent}>"})
    for one, other in ((root, parent), (f"{{parent}}{root}", f"{{root}}{parent}")):
        assert context_text(task, {"root": one, "parent": other}) == f"<{one}>\n<{other}>"
