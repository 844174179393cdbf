"""What visitors find: a citation of this version, a workflow of scripts that exist, templates for reports."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import ripple

ROOT = Path(__file__).resolve().parents[2]


def test_the_citation_is_of_this_version() -> None:
    record = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert record["version"] == ripple.__version__
    assert record["license"] == "BSD-3-Clause"


def test_the_workflow_runs_scripts_that_exist() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    commands = [s["run"] for job in workflow["jobs"].values() for s in job["steps"] if "run" in s]
    assert {"./scripts/check", "./scripts/test"} <= set(commands)
    for command in commands:
        for path in re.findall(r"\./scripts/\w+|tests/\S+", command):
            assert (ROOT / path).exists(), command


def test_reports_of_faults_come_with_the_environment() -> None:
    template = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    doctor = next(part for part in template["body"] if part.get("id") == "doctor")
    assert "ripple doctor --json" in doctor["attributes"]["label"]
    assert doctor["validations"]["required"]
    assert (ROOT / "SECURITY.md").is_file()
