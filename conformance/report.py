"""What a run of the suite has found: as data, as JUnit XML and as a page."""

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import get_args

import jinja2
from markupsafe import Markup, escape

from pagedkv.conformance.check import Check
from pagedkv.conformance.spec_text import Rule, rules
from pagedkv.conformance.suite import Outcome, Plan, Status

VERSION = 1
"""Version of the JSON; readers refuse a larger one."""

STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True)
class Result:
    """One implementation and how every check went on it."""

    plan: Plan
    """What was run."""
    outcomes: Sequence[Outcome]
    """How it went, check by check."""
    not_reached: Sequence[Check] = ()
    """Checks that were not run to their end, since the run was stopped; the result is partial."""

    @property
    def counts(self) -> Counter[Status]:
        """Checks by status."""
        return Counter(outcome.status for outcome in self.outcomes)

    @property
    def ok(self) -> bool:
        """Whether every check was run, and none failed."""
        return not self.counts["failed"] and not self.not_reached

    @property
    def summary(self) -> str:
        """The counts as a sentence."""
        parts = [f"{self.counts[s]} {s}" for s in STATUSES if self.counts[s]]
        done = f"{len(self.outcomes)} checks"
        if self.not_reached:
            of = len(self.outcomes) + len(self.not_reached)
            done = f"partial, stopped after {len(self.outcomes)} of {of} checks"
        return ": ".join(filter(None, (done, ", ".join(parts))))

    def alike(self, status: Status) -> list[list[Outcome]]:
        """The checks that ended so; those that one and the same exception ended stand together."""
        groups: dict[object, list[Outcome]] = {}
        for outcome in self.outcomes:
            if outcome.status == status:
                shared = outcome.details or not outcome.reproduction
                same = (outcome.reason, outcome.where) if shared else outcome.check.id
                groups.setdefault(same, []).append(outcome)
        return list(groups.values())

    def of_rule(self, rule: Rule) -> list[Outcome]:
        """The checks that are mainly about a rule."""
        return [outcome for outcome in self.outcomes if outcome.check.rule == rule]

    def status_of(self, rule: Rule) -> Status | None:
        """The worst that a check of the rule has shown; ``None`` if none was run."""
        found = {outcome.status for outcome in self.of_rule(rule)}
        order: tuple[Status, ...] = ("failed", "deviates", "passed", "skipped", "not asked")
        return next((status for status in order if status in found), None)


def as_data(results: Sequence[Result]) -> dict[str, object]:
    """Everything in plain values, for JSON."""
    from pagedkv import __version__

    return {
        "format": "pagedkv-conformance",
        "version": VERSION,
        "pagedkv": __version__,
        "implementations": [_implementation(result) for result in results],
    }


def _implementation(result: Result) -> dict[str, object]:
    implementation = result.plan.implementation
    return {
        "impl": result.plan.impl,
        "name": implementation.name,
        "version": implementation.version,
        "capabilities": sorted(implementation.capabilities),
        "notes": list(result.plan.notes),
        "follows": sorted(implementation.follows),
        "profile": result.plan.profile.name if result.plan.profile else None,
        "ok": result.ok,
        "partial": bool(result.not_reached),
        "not_reached": [check.id for check in result.not_reached],
        "counts": {status: result.counts[status] for status in STATUSES},
        "checks": [_outcome(outcome) for outcome in result.outcomes],
    }


def _outcome(outcome: Outcome) -> dict[str, object]:
    return {
        "check": outcome.check.id,
        "rule": outcome.check.rule.id,
        "strength": outcome.check.rule.strength,
        "claim": outcome.check.claim,
        "status": outcome.status,
        "broken_rule": outcome.rule or None,
        "reason": outcome.reason or None,
        "deviation": outcome.known.model_dump() if outcome.known else None,
        "where": outcome.where or None,
        "reproduction": outcome.reproduction or None,
        "details": outcome.details or None,
        "seconds": round(outcome.seconds, 4),
    }


def as_junit(results: Sequence[Result]) -> bytes:
    """JUnit XML: one suite per implementation, one case per check."""
    root = ET.Element("testsuites")
    for result in results:
        implementation, counts = result.plan.implementation, result.counts
        left_out = counts["skipped"] + counts["not asked"] + counts["deviates"]
        suite = ET.SubElement(
            root,
            "testsuite",
            name=f"{implementation.name} {implementation.version}",
            tests=str(len(result.outcomes) + len(result.not_reached)),
            failures=str(counts["failed"]),
            errors="0",
            skipped=str(left_out + len(result.not_reached)),
            time=f"{sum(o.seconds for o in result.outcomes):.3f}",
        )
        if result.not_reached:
            properties = ET.SubElement(suite, "properties")
            ET.SubElement(properties, "property", name="partial", value=result.summary)
        for outcome in result.outcomes:
            case = _case(suite, outcome.check, outcome.seconds)
            if outcome.status == "failed":
                failure = ET.SubElement(case, "failure", message=_xml_text(outcome.told))
                failure.text = _xml_text(f"{outcome.reproduction}\n\n{outcome.details}".strip())
            elif outcome.status != "passed":
                told = f"{outcome.status}: {outcome.reason}"
                ET.SubElement(case, "skipped", message=_xml_text(told))
        for check in result.not_reached:
            ET.SubElement(_case(suite, check, 0), "skipped", message="not reached: stopped before")
    ET.indent(root)
    return (
        b'<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode").encode()
    )


def _case(suite: ET.Element, check: Check, seconds: float) -> ET.Element:
    section, _, name = check.id.partition(".")
    classname = f"pagedkv.conformance.{section}"
    return ET.SubElement(suite, "testcase", classname=classname, name=name, time=f"{seconds:.3f}")


def _xml_text(text: str) -> str:
    """The text without characters that XML cannot say."""
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def as_page(results: Sequence[Result]) -> str:
    """One self-contained HTML page with a table of rules by implementations."""
    from pagedkv import __version__

    source = files("pagedkv.conformance").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["prose"] = _prose
    sections: dict[str, list[Rule]] = {}
    for rule in rules().values():
        if any(result.of_rule(rule) for result in results):
            sections.setdefault(rule.section, []).append(rule)
    return environment.from_string(source).render(
        results=results, sections=sections, version=__version__
    )


def _prose(text: str) -> Markup:
    """A sentence of ours, whose backticks and asterisks are markup."""
    marked = re.sub(r"`+([^`]+)`+", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*([^*]+)\*", r"<em>\1</em>", marked))
