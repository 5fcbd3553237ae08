"""Templates of the user's: what they reach, and that they end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.commands import naming

from kdcli.errors import ConfigError
from kdcli.templates import Template

GIVEN = {"text": "A text.", "labels": ["bad", "good"], "first": True}


def rendered(tmp_path: Path, source: str, **given: object) -> str:
    path = tmp_path / "prompt.jinja"
    path.write_text(source)
    return Template(path).render(GIVEN | given)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ text }} {{ labels | join(', ') }}", "A text. bad, good"),
        ("{% for label in labels %}{{ loop.index }}/{{ loop.length }}{{ label }}{{ ', ' if not loop.last }}{% endfor %}", "1/2bad, 2/2good"),
        ("{% macro ask(x) %}<{{ x | upper }}{{ caller() }}>{% endmacro %}{% call ask('b') %}c{% endcall %}", "<Bc>"),
        ("{% set ns = namespace(n=0) %}{% for x in range(50) %}{% set ns.n = ns.n + x * 2 %}{% endfor %}{{ ns.n }}", "2450"),
        ("{{ text[:3] ~ '-' * 3 ~ '%05.2f' % 3.14159 ~ '{:>5}'.format('x') }}", "A t---03.14    x"),
        ("{{ text.replace('A', 'The').split()[0] | center(7) }}", "  The  "),
        ("{% for group in labels | batch(1) %}{{ group[0] }}{% endfor %}{{ labels | map('title') | list }}", "badgood['Bad', 'Good']"),
    ],
)  # fmt: skip
def test_ordinary_templates_work(tmp_path: Path, source: str, expected: str) -> None:
    """A sandbox in which the prompts that people write stop working."""
    assert rendered(tmp_path, source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
        "{{ text.__class__ }}{{ self.__init__.__globals__ }}",
        "{{ '{0.__class__.__mro__}'.format(text) }}{{ labels.append('x') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.system('touch canary') }}",
        "{% for x in range(10**9) %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in text %}" * 12 + "{{ a }}" + "{% endfor %}" * 12,
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% for x in [labels] recursive %}{{ loop([labels, labels]) }}{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{{ 10**10 * 'a' }}{{ [1] * 10**9 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ '%9999999999d' % 1 }}{{ '%*d' % (10**9, 1) }}",
        "{{ '{:9999999999}'.format(1) }}",
        "{{ '{:{}}'.format('a', 10**10) }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ 'a' | center(10**10) }}{{ 'a'.ljust(10**10) }}",
        "{{ text | indent(10**10) }}{{ labels | batch(10**9, 'x') | list }}{{ labels | slice(10**9) | list }}",
        "{% set ns = namespace(x=text) %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=text) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=text) %}{% for i in range(60) %}{% set ns.x = ns.x.replace('A', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x=text) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] | join(ns.x) %}{% endfor %}",
        "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
        "{% for x in range(99999) %}{{ text * 1000 }}{% endfor %}",
        "{{ lipsum(n=100000) }}",
        "{{ unknown }}", "{{", "{% for %}", "{{ 1 / 0 }}", "{{ text.nothing.more }}",
        "(" * 500 + "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    ],
)  # fmt: skip
def test_a_hostile_template_ends_in_one_message(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that a downloaded prompt runs; a prompt that never ends, or takes all memory."""
    monkeypatch.chdir(tmp_path)
    began = time.process_time()
    with pytest.raises(ConfigError, match=r"prompt\.jinja"):
        rendered(tmp_path, source)
    assert time.process_time() - began < 10
    assert not (tmp_path / "canary").exists()


def test_each_rendering_may_do_as_much(tmp_path: Path) -> None:
    """A budget that the rows of a data set share: the thousandth prompt is refused."""
    path = tmp_path / "prompt.jinja"
    path.write_text("{% for x in range(2000) %}{{ x }}{% endfor %}")
    template = Template(path)
    assert len({template.render(GIVEN) for _ in range(300)}) == 1


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    """A traceback for a prompt in another encoding."""
    path = tmp_path / "prompt.jinja"
    path.write_bytes("é".encode("latin-1"))
    with pytest.raises(ConfigError, match=naming(str(path), "read")):
        Template(path)
