"""`ripple plan`."""

from __future__ import annotations

import json
import sys

import click

from ripple.cli.options import config_options
from ripple.stages.fetch.config import FetchConfig
from ripple.stages.plan.config import PlanConfig


@click.command(
    "plan",
    epilog="Example: ripple plan --repo dp2 --collections dp2 --bands gri --targets lenses.csv --size 64",
)
@config_options(PlanConfig, of=FetchConfig)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON on stdout.")
def command(config: PlanConfig, as_json: bool) -> None:
    """Dry run of fetch or search: which coadds exist, what is missing, how many bytes, how long it takes.

    The repository is opened read-only and nothing is written.
    """
    from ripple.runtime.summary import progress
    from ripple.stages.plan.estimate import SHOWN, facts, show
    from ripple.stages.plan.planner import make_plan

    shown = None if as_json else SHOWN
    with progress(None, "plan"):
        if config.search is not None:
            from ripple.stages.search.estimate import search_facts  # loads PyTorch

            found = search_facts(config, shown)
        else:
            # 0 workers work in this process: one in all.
            found = facts(make_plan(config), max(1, config.workers), shown)
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    show(found)
