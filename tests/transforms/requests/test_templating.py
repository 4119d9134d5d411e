"""Templates: a missing or NULL field is an error wherever it is used, and the sandbox holds."""

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms import JSON_OBJECTS, JSON_VALUES
from transforms.records import json_values
from transforms.records.errors import ConfigurationError, MissingField, RenderError, TooLarge
from transforms.requests import templating
from transforms.requests.templating import PromptTemplate

FIELDS: dict[str, Any] = {
    "title": "Lamp",
    "zero": 0,
    "empty": "",
    "gone": None,
    "Order ID": 17,
    "tags": ["a", None, "c"],
    "maker": {"name": "ACME", "city": None, "sites": [{"id": None}]},
}


def _render(source: str, fields: dict[str, Any] | None = None) -> str:
    return PromptTemplate(source).render(FIELDS if fields is None else fields)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("no fields", "no fields"),
        ("{{ title }}", "Lamp"),
        ("{{ record.title }}", "Lamp"),
        ("{{ record['Order ID'] }}", "17"),
        ("{{ zero }}|{{ empty }}|", "0||"),
        ("{{ maker.name }} {{ maker['name'] }} {{ record.maker.name }}", "ACME ACME ACME"),
        ("{{ tags[0] }}{{ tags | last }}", "ac"),
        ("{{ title | tojson }}", '"Lamp"'),
        ("{{ tags | tojson }}", '["a",null,"c"]'),
        ("{{ maker | tojson }}", '{"name":"ACME","city":null,"sites":[{"id":null}]}'),
        ("{{ maker.sites | tojson(indent=1) }}", '[\n {\n  "id": null\n }\n]'),
        ("{{ {'a': tags} | tojson }}", '{"a":["a",null,"c"]}'),
        ("{{ [1, 2] | map('string') | join('-') }}", "1-2"),
        ("<b>{{ '<&>' }}</b>", "<b><&></b>"),
        ("line\n", "line"),
        ("{% for k, v in record.items() if v is not none %}{{ loop.index }}{% endfor %}", "123456"),
        ("{% set t = title %}{{ t }}", "Lamp"),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m(title) }}", "[Lamp]"),
        ("{% block b %}x{% endblock %}{{ self.b() }}", "xx"),
    ],
)
def test_renders(source: str, expected: str) -> None:
    """Fields are variables and keys of ``record``; nothing is escaped."""
    assert _render(source) == expected


@pytest.mark.parametrize(
    ("source", "field"),
    [
        ("{{ nothing }}", "nothing"),
        ("{{ record.nothing }}", "nothing"),
        ("{{ record['no such'] }}", "no such"),
        ("{{ maker.nothing }}", "nothing"),
        ("{{ maker.nothing.deeper }}", "nothing"),
        ("{{ nothing | upper }}", "nothing"),
        ("{{ nothing ~ 'x' }}", "nothing"),
        ("{{ nothing + 1 }}", "nothing"),
        ("{{ nothing == 1 }}", "nothing"),
        ("{{ nothing | tojson }}", "nothing"),
        ("{{ [nothing] | tojson }}", "nothing"),
        ("{{ [nothing] }}", "nothing"),
        ("{{ nothing() }}", "nothing"),
        ("{% if nothing %}{% endif %}", "nothing"),
        ("{% if not nothing %}{% endif %}", "nothing"),
        ("{% for x in nothing %}{% endfor %}", "nothing"),
        ("{{ tags | map(attribute='x') | join }}", "x"),
        ("{{ lipsum }}", "lipsum"),
    ],
)
def test_a_missing_field(source: str, field: str) -> None:
    """Any use of a missing field, also in a condition, is an error that names it."""
    with pytest.raises(MissingField, match=f"^field '{field}' is missing$"):
        _render(source)


@pytest.mark.parametrize(
    ("source", "field"),
    [
        ("{{ gone }}", "gone"),
        ("{{ record.gone }}", "gone"),
        ("{{ record['gone'] }}", "gone"),
        ("{{ maker.city }}", "city"),
        ("{{ maker['city'] }}", "city"),
        ("{{ maker.city.zip }}", "city"),
        ("{{ maker.sites[0].id }}", "id"),
        ("{{ tags[1] }}", r"tags\[1\]"),
        ("{{ gone.x }}", "gone"),
        ("{{ gone[0] }}", "gone"),
        ("{{ gone() }}", "gone"),
        ("{{ gone ~ 'x' }}", "gone"),
        ("{{ 'x' ~ gone }}", "gone"),
        ("{{ gone + 'x' }}", "gone"),
        ("{{ 'x' + gone }}", "gone"),
        ("{{ gone < 1 }}", "gone"),
        ("{{ -gone }}", "gone"),
        ("{{ '%s' | format(gone) }}", "gone"),
        ("{{ '%s' % gone }}", "gone"),
        ("{{ '{}'.format(gone) }}", "gone"),
        ("{{ '{:>5}'.format(gone) }}", "gone"),
        ("{{ range(gone) | list }}", "gone"),
        ("{% for x in gone %}{% endfor %}", "gone"),
        ("{% for x in tags %}{{ x }}{% endfor %}", r"tags\[1\]"),
        ("{% for x in tags %}{{ x ~ '' }}{% endfor %}", r"tags\[1\]"),
        ("{% for k, v in maker.items() %}{{ k ~ v }}{% endfor %}", "city"),
        ("{% for s in maker.sites %}{{ s.id }}{% endfor %}", "id"),
        ("{% set x = gone %}{{ x }}", "gone"),
        ("{% macro m(x) %}{{ x }}{% endmacro %}{{ m(gone) }}", "gone"),
        ("{{ tags | join(',') }}", r"tags\[1\]"),
        ("{{ maker.sites | map(attribute='id') | join }}", "id"),
        ("{{ tags }}", r"tags\[1\]"),
        ("{{ maker }}", "city"),
        ("{{ record }}", "gone"),
        ("{{ [gone] }}", "gone"),
        ("{{ gone | tojson }}", "gone"),
        ("{{ maker.city | tojson }}", "city"),
        *((f"{{{{ gone | {name} }}}}", "gone") for name in (
            "upper", "lower", "trim", "length", "list", "string", "int", "float", "safe", "escape",
            "first", "sort", "sum", "replace('a', 'b')", "truncate", "wordcount", "pprint",
            "join", "abs", "round", "reverse", "title", "urlencode", "indent", "striptags",
        )),
        ("{{ {gone: 1} }}", "gone"),
        ("{{ tags | unique | list }}", r"tags\[1\]"),
    ],
)  # fmt: skip
def test_a_null_field(source: str, field: str) -> None:
    """NULL at any depth is an error where it is used, and never the text "None"."""
    with pytest.raises(MissingField, match=f"^field '{field}' is NULL$"):
        _render(source)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ gone | default('d') }}", "d"),
        ("{{ gone | d('d') }}", "d"),
        ("{{ nothing | default('d') }}", "d"),
        ("{{ record.gone | default('d') }}", "d"),
        ("{{ record['no such'] | default('d') }}", "d"),
        ("{{ maker.city | default('d') }}", "d"),
        ("{{ maker.nothing | default('d') }}", "d"),
        ("{{ tags[1] | default('d') }}", "d"),
        ("{% for x in tags %}{{ x | default('d') }}{% endfor %}", "adc"),
        ("{% for s in maker.sites %}{{ s.id | default('d') }}{% endfor %}", "d"),
        ("{{ tags | map('default', 'd') | join }}", "adc"),
        ("{{ maker.sites | map(attribute='id', default='d') | join }}", "d"),
        ("{{ record.get('gone') | default('d') }}", "d"),
        ("{{ record.get('nothing') | default('d') }}", "d"),
        ("{% set x = {'a': none} %}{{ x.a | default('d') }}{{ x['a'] | default('d') }}", "dd"),
        ("{{ empty | default('d') }}", ""),
        ("{{ empty | default('d', true) }}", "d"),
        ("{{ gone | default('d', true) }}", "d"),
        ("{{ gone or 'd' }}", "d"),
        ("{{ gone | default('d') | upper }}", "D"),
    ],
)
def test_default(source: str, expected: str) -> None:
    """``default()`` replaces a missing or NULL value, at any depth."""
    assert _render(source) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("title is defined", True),
        ("empty is defined", True),
        ("gone is defined", False),
        ("gone is undefined", True),
        ("nothing is defined", False),
        ("record.gone is defined", False),
        ("record.nothing is defined", False),
        ("maker.city is defined", False),
        ("tags[1] is defined", False),
        ("gone is none", True),
        ("record.gone is none", True),
        ("maker.city is none", True),
        ("tags[1] is none", True),
        ("none is none", True),
        ("title is none", False),
        ("nothing is none", False),
        ("gone == none", True),
        ("none == gone", True),
        ("gone != none", False),
        ("gone == maker.city", True),
        ("gone == 0", False),
        ("gone != 'Lamp'", True),
        ("gone in [none]", True),
        ("gone in ['a']", False),
        ("not gone", True),
        ("gone and title", False),
        ("maker.city or maker.name", True),
        ("(tags | select('none') | list | length) == 1", True),
        ("(tags | reject('none') | join) == 'ac'", True),
        ("(tags | select | join) == 'ac'", True),
        ("(tags | length) == 3", True),
    ],
)
def test_conditions(source: str, *, expected: bool) -> None:
    """``if``, ``is defined`` and ``is none`` recognise an absent field."""
    assert _render(f"{{% if {source} %}}yes{{% else %}}no{{% endif %}}") == (
        "yes" if expected else "no"
    )
    assert _render(f"{{{{ 'yes' if {source} else 'no' }}}}") == ("yes" if expected else "no")


@pytest.mark.parametrize(
    "name", ["items", "keys", "values", "get", "loop", "range", "dict", "self"]
)
def test_fields_with_names_of_other_things(name: str) -> None:
    """A field takes precedence over a method or a function of Jinja."""
    fields = {name: "mine"}
    assert _render(f"{{{{ record.{name} }}}}", fields) == "mine"
    assert _render(f"{{{{ record['{name}'] }}}}", fields) == "mine"
    assert _render(f"{{{{ nested.{name} }}}}", {"nested": fields}) == "mine"
    with pytest.raises(MissingField, match=f"^field '{name}' is NULL$"):
        _render(f"{{{{ record.{name} }}}}", {name: None})
    if name != "self":
        assert _render(f"{{{{ {name} }}}}", fields) == "mine"


def test_a_field_called_record() -> None:
    """``record`` is the whole record, which may contain a field of that name."""
    fields = {"record": "mine", "a": 1}
    assert _render("{{ record.record }} {{ record.a }}", fields) == "mine 1"


def test_a_field_called_self() -> None:
    """Jinja reserves the bare name ``self``: the error says how to write the field."""
    with pytest.raises(RenderError, match=r"^'self' is Jinja's own name: write record\['self'\]"):
        _render("{{ self }}", {"self": "mine"})


@pytest.mark.parametrize(
    "name", ["true", "in", "if", "a-b", "2nd", "naïve name", "__class__", "'", ""]
)
def test_names_that_are_not_identifiers(name: str) -> None:
    """Brackets access fields whose names are not identifiers."""
    assert _render(f'{{{{ record["{name}"] }}}}', {name: "mine"}) == "mine"


@pytest.mark.parametrize(
    "source",
    [
        "{{ record.items }}",
        "{{ record.get }}",
        "{{ title.upper }}",
        "{{ range }}",
        "{{ dict }}",
        "{{ cycler }}",
        "{{ namespace }}",
        "{% for x in [1] %}{{ loop }}{% endfor %}",
        "{% macro m() %}{% endmacro %}{{ m }}",
    ],
)
def test_a_function_is_not_a_field(source: str) -> None:
    """Printing a function is an error: its memory address would change each fingerprint."""
    with pytest.raises(MissingField, match=r"^the template prints the function '.*', which is not"):
        _render(source)


def test_printing_none() -> None:
    """A NULL that does not come from a field is not printed either."""
    with pytest.raises(MissingField, match=r"^the template prints a value that is NULL$"):
        _render("{{ none }}")
    with pytest.raises(MissingField, match=r"^a function returned NULL$"):
        _render("{{ record.get('nothing') ~ 'x' }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ record.__class__ }}",
        "{{ record['__class__']['__mro__'] }}",
        "{{ record.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ joiner.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ range.__self__ }}",
        "{{ gone.__class__.__mro__ }}",
        "{{ nothing.__class__.__mro__ }}",
        "{{ lipsum.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ '{0.__class__}'.format(title) }}",
        "{{ '{x.__class__}'.format_map({'x': title}) }}",
        "{{ (title.format).__globals__ }}",
        "{{ [record] | map(attribute='__class__') | list }}",
        "{% macro m() %}{% endmacro %}{{ m.__globals__ }}",
        "{{ record.update({'title': 'x'}) }}",
        "{{ record.clear() }}",
        "{{ tags.append(1) }}",
        "{{ tags.pop() }}",
        "{{ range(10**9) }}",
        "{% for x in range(10**9) %}x{% endfor %}",
        "{% for x in range(0, 10**12, 3) %}x{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ title + 1 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_the_sandbox(source: str) -> None:
    """Templates cannot reach Python's internals, files or the record itself: the record fails."""
    fields = {"title": "Lamp", "gone": None, "tags": ["a"]}
    with pytest.raises((RenderError, MissingField)):
        _render(source, fields)
    assert fields == {"title": "Lamp", "gone": None, "tags": ["a"]}


def test_messages_of_failures() -> None:
    """Messages of failures contain the exception's message."""
    with pytest.raises(RenderError, match=r"^the template failed: ZeroDivisionError: division by"):
        _render("{{ 1 / 0 }}")
    with pytest.raises(
        RenderError, match="SecurityError: access to attribute '__class__' of 'str'"
    ):
        _render("{{ title.__class__ }}")
    with pytest.raises(RenderError, match="OverflowError: Range too big"):
        _render("{% for x in range(10**9) %}x{% endfor %}")
    with pytest.raises(RenderError, match=r"^the template failed: RecursionError$"):
        _render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}")


@pytest.mark.parametrize(
    ("source", "line", "text"),
    [
        ("{{ title", 1, "{{ title"),
        ("one\ntwo {{ a b }}\nthree", 2, "two {{ a b }}"),
        ("one\n{% if a %}\n{{ b }}", 3, "{{ b }}"),
        ("one\n\n  {{ a | no_such_filter }}", 3, "{{ a | no_such_filter }}"),
        ("{% if a is no_such_test %}{% endif %}", 1, "{% if a is no_such_test %}{% endif %}"),
        ("one\n{% if a %}\n{{ a | typo }}\n{% endif %}", 3, "{{ a | typo }}"),
        (
            "{% if a %}{% filter typo %}{% endfilter %}{% endif %}",
            1,
            "{% if a %}{% filter typo %}{% endfilter %}{% endif %}",
        ),
        ("one\n{% include '/etc/passwd' %}", 2, "{% include '/etc/passwd' %}"),
        ("one\n{% import 'os' as os %}", 2, "{% import 'os' as os %}"),
        ("one\n{% from 'os' import path %}", 2, "{% from 'os' import path %}"),
        ("{% extends 'base' %}\none", 1, "{% extends 'base' %}"),
        ("one\n{% endfor %}", 2, "{% endfor %}"),
    ],
)
def test_syntax_errors_name_the_line(source: str, line: int, text: str) -> None:
    """A syntax error names the option, the line's number and the line itself."""
    with pytest.raises(ConfigurationError) as caught:
        PromptTemplate(source, "prompt.jinja")
    message = str(caught.value)
    assert message.startswith(f"prompt.jinja is not a valid template: line {line}: ")
    assert message.endswith(f": {text!r}")


def test_the_default_name() -> None:
    """Without a name the template is called by its option."""
    with pytest.raises(ConfigurationError, match=r"^`prompt` is not a valid template: line 1: "):
        PromptTemplate("{%")


def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that multiplies its input stops above the limit."""
    monkeypatch.setattr(templating, "MAX_PROMPT_CHARACTERS", 10)
    assert _render("{{ 'x' * 10 }}") == "x" * 10
    with pytest.raises(TooLarge, match=r"^the rendered prompt has 11 characters"):
        _render("{{ 'x' * 11 }}")


def test_lone_surrogates_in_a_template() -> None:
    """Lone surrogates in a template are escaped, as everywhere."""
    assert _render("{{ a }}\ud83d", {"a": "é"}) == r"é\ud83d"


def test_a_template_serves_many_records() -> None:
    """No record's values reach the next one, and no record is changed."""
    template = PromptTemplate("{{ a | default('-') }}{% set b = 1 %}{{ c | default('-') }}")
    records: list[dict[str, Any]] = [{"a": 1}, {"a": None}, {"c": 2}, {}]
    assert [template.render(fields) for fields in records] == ["1-", "--", "-2", "--"]
    assert records == [{"a": 1}, {"a": None}, {"c": 2}, {}]


@settings(deadline=None)
@given(JSON_OBJECTS)
def test_record_as_json(fields: dict[str, Any]) -> None:
    """``record | tojson`` is the record, whatever it holds."""
    assert _render("{{ record | tojson }}", fields) == json_values.dumps(fields).decode()
    indented = _render("{{ record | tojson(indent=2) }}", fields)
    assert repr(json_values.loads(indented)) == repr(fields)


def _holds_null(value: Any) -> bool:
    items = value.values() if isinstance(value, dict) else value
    return value is None or (isinstance(value, (dict, list)) and any(map(_holds_null, items)))


@settings(deadline=None)
@given(JSON_VALUES)
def test_a_printed_null_is_an_error_at_any_depth(value: Any) -> None:
    """Printing a value fails exactly if it contains a NULL."""
    if _holds_null(value):
        with pytest.raises(MissingField, match=r"is NULL$"):
            _render("{{ x }}", {"x": value})
    else:
        assert _render("{{ x }}", {"x": value}) == str(value)


@settings(deadline=None)
@given(
    st.sampled_from(
        ["{% for y in x %}{{ y ~ '' }}{% endfor %}", "{{ x | join(',') }}", "{{ x | sum }}"]
    ),
    JSON_VALUES,
)
def test_a_failure_is_always_the_records(source: str, value: Any) -> None:
    """A failure is always one of the two rendering errors."""
    with contextlib.suppress(MissingField, RenderError):
        _render(source, {"x": value})
