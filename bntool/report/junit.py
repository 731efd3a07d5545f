"""JUnit XML, as CI systems read it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as Xml

#: characters that XML 1.0 cannot carry at all
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class TestCase:
    """One line of a CI's test list. `outcome` is "passed", "failed", "skipped" or "error". Units: seconds."""

    __test__ = False  # pytest collects classes whose names begin with Test

    group: str
    name: str
    outcome: str
    message: str = ""
    details: str = ""
    seconds: float = 0.0


_TAGS = {"failed": "failure", "skipped": "skipped", "error": "error"}


def junit_xml(suite: str, cases: Sequence[TestCase]) -> str:
    counts = {tag: sum(_TAGS.get(c.outcome) == tag for c in cases) for tag in _TAGS.values()}
    attributes = {
        "name": clean(suite),
        "tests": str(len(cases)),
        "failures": str(counts["failure"]),
        "errors": str(counts["error"]),
        "skipped": str(counts["skipped"]),
        "time": f"{sum(c.seconds for c in cases):.3f}",
    }
    root = Xml.Element("testsuites")
    group = Xml.SubElement(root, "testsuite", attributes)
    for case in cases:
        _add(group, case)
    Xml.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _add(group: Xml.Element, case: TestCase) -> None:
    names = {"classname": clean(case.group), "name": clean(case.name), "time": f"{case.seconds:.3f}"}
    element = Xml.SubElement(group, "testcase", names)
    if case.outcome in _TAGS:
        Xml.SubElement(element, _TAGS[case.outcome], {"message": clean(case.message)}).text = clean(
            case.details
        )
    elif case.details:
        Xml.SubElement(element, "system-out").text = clean(case.details)


def clean(text: str) -> str:
    return _FORBIDDEN.sub("?", text)
