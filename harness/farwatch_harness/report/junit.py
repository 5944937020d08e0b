# SPDX-License-Identifier: Apache-2.0
"""A run as JUnit XML: a test suite for each patch, with its checks and tests as test cases.

Jenkins, GitLab and the reporters of GitHub Actions read this form: testsuites, testsuite, testcase
with failure or skipped, system-out. Checks that were not requested are absent.
"""

import xml.etree.ElementTree as ET

from farwatch_harness.report.text import joined
from farwatch_harness.results import CheckResult, PatchResult, Run, Status, TestResult

# Characters of one output; the whole is in results.json.
OUTPUT_LIMIT = 64_000
BLOCKED = "an earlier check of this patch failed"


def render(run: Run) -> str:
    """Return the XML of a run whose text is harmless."""
    top = ET.Element("testsuites", name="farwatch")
    for patch in run.patches:
        add_suite(top, run, patch)
    for name, of in (
        ("tests", "testcase"),
        ("failures", "testcase/failure"),
        ("skipped", "testcase/skipped"),
    ):
        top.set(name, str(len(top.findall(f"testsuite/{of}"))))
    top.set("errors", "0")
    top.set("time", f"{sum(check.seconds for patch in run.patches for check in patch.checks):.3f}")
    ET.indent(top)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(top, encoding="unicode") + "\n"


def title(patch: PatchResult) -> str:
    """Return the patch's name in all outputs: its number and its subject."""
    return f"{patch.number:04} {patch.subject}"


def add_suite(top: ET.Element, run: Run, patch: PatchResult) -> None:
    """Add the test suite of one patch. Its time is that of the checks, which include the tests."""
    suite = ET.SubElement(top, "testsuite", name=title(patch))
    properties = ET.SubElement(suite, "properties")
    for name, value in {"file": patch.file, "section": patch.section, **run.environment}.items():
        ET.SubElement(properties, "property", name=name, value=value)
    prefix = f"patch{patch.number:04}"
    for check in patch.checks:
        add_case(suite, f"{prefix}.checks", check)
    for test in patch.tests:
        add_case(suite, f"{prefix}.tests", test)
    suite.set("tests", str(len(suite.findall("testcase"))))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("errors", "0")
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    suite.set("time", f"{sum(check.seconds for check in patch.checks):.3f}")
    suite.set("timestamp", run.started)


def add_case(suite: ET.Element, classname: str, found: CheckResult | TestResult) -> None:
    """Add a check or a test, unless it was not requested."""
    if found.status is Status.SKIPPED:
        return
    case = ET.SubElement(
        suite, "testcase", classname=classname, name=found.name, time=f"{found.seconds:.3f}"
    )
    output = joined(found.output, OUTPUT_LIMIT)
    reason = found.reason if isinstance(found, CheckResult) else last_line(found.output)
    if found.status is Status.FAILED:
        ET.SubElement(case, "failure", message=reason, type=found.status).text = output or reason
    elif found.status is Status.BLOCKED:
        ET.SubElement(case, "skipped", message=reason or BLOCKED)
    elif output:
        ET.SubElement(case, "system-out").text = output


def last_line(output: str) -> str:
    """Return the last line of a test's report, which mostly says where and why it failed."""
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
