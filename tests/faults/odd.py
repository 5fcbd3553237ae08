"""Odd values, as Python objects and as words of a command line."""

from __future__ import annotations

import random
from typing import Any

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e-320, 5e-324, 1e18, 1e300, float("inf"), float("-inf"), float("nan"), 10**30, 10**400, -(10**400),
    "", " ", "x", "null", "true", "1e999", "9" * 5000, "a" * 300, "a" * 9000, "\0", "a\0b", "\ud800", "\x1b[31m", "..", "../x", "/", "/dev/null",
    "${seed}", "${nope}", "${oc.env:NO_SUCH_VARIABLE}", "${", "???", "(((", "a{9999999999999}", "[", "{", "é", "日本", "​", "a,b", "a=b", "'", '"', "\\",
    [], [[]], [None], [1, "a", {}], [True], ["a"] * 1000, {}, {"": 1}, {"a": {"b": {}}}, {"_target_": "os.system"}, {"_target_": 5}, {"x": [{"_target_": "a"}]},
    {1: 2}, {"path": "x"}, b"bytes", (1, 2),
]  # fmt: skip
WORDS = [
    "", "null", "true", "5", "-1", "0", "1e999", "nan", "1e-320", "9" * 5000, "a" * 300, "a" * 5000, "[]", "[{}]", "{}", "[1,[2,{a:b}]]", "{_target_:os.getcwd}",
    "${seed}", "${nope}", "${oc.env:NO_SUCH_VARIABLE}", "${", "${foo:1}", "???", "'", '"', "'a'", '"a"', "a b", " ", "a,b", "a=b", "\\", "\\,", "\0", "\udcff", "é",
    "日本", "../x", "/dev/null", "/", "~", "range(0,0)", "range(3)", "range(0,3,0)", "range(0,1000000000)", "glob(*)", "interval(0,1)", "choice()", "choice(1,2)",
    "shuffle(1,2)", "sort(2,1)", "tag(a,1)", "int(x)", "float(nan)", "[" * 500, "[" * 300 + "]" * 300, "{a:" * 200, "(" * 300, "[" + "a," * 1500 + "a]",
]  # fmt: skip


def nested(source: random.Random) -> Any:
    """A value, or one inside a few lists and mappings."""
    value = source.choice(VALUES)
    for _ in range(source.choice((0, 0, 0, 1, 2, 40))):
        value = [value] if source.random() < 0.5 else {source.choice(("a", "x", "_target_")): value}
    return value
