"""`pmwatch apply`: a tenant gets what a plan says."""

import os
from collections.abc import Sequence
from contextlib import closing
from typing import Annotated

import typer

from pmwatch.cli import app
from pmwatch.cli.api import TenantOption, YesOption, access_of, read_bpmn
from pmwatch.cli.common import ConfigOption, JsonOption, console, http_of, print_json
from pmwatch.errors import ExitCode, PmwatchError
from pmwatch.processmind import Client
from pmwatch.provision import Provisioner, Step, load_plan


@app.command()
def apply(
    plan: Annotated[str, typer.Argument(metavar="PLAN.toml", help="Datasets, processes, mappings and users.")],
    *,
    tenant: TenantOption = None,
    update_models: Annotated[
        bool,
        typer.Option(
            "--update-models",
            help="Send each BPMN model again. Needed after a change: the API does not show the model that is there.",
        ),
    ] = False,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Delete what the plan does not name, of the kinds that it names, but datatables: the API cannot.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    yes: YesOption = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Create what a plan names and the tenant lacks; show first what that is. A second run finds nothing to do.

    Nothing is deleted without --prune, and a model that is there is not replaced without --update-models.

    The plan is TOML with lists of tables:

    datasets: name, datatables = ["Table", ...]

    processes: name, bpmn = "FILE" beside the plan, and a list of mappings

    processes.mappings: name, datatable = "Dataset/Table", color, show_by_default

    users: email, first_name, last_name, active, admin, developer
    """
    if json and not (yes or dry_run):
        raise typer.BadParameter("--json asks no questions: add --yes to do it, or --dry-run to look first")
    wanted = load_plan(plan)
    access = access_of(config, tenant)
    directory = os.path.dirname(os.path.abspath(plan))
    with closing(http_of(access.settings)) as http:
        client = Client(access.api_key, base_url=access.base_url, http=http)
        provisioner = Provisioner(
            client, access.tenant_id, wanted, read_model=lambda name: read_bpmn(os.path.join(directory, name))
        )
        steps = provisioner.steps(update_models=update_models, prune=prune)
        out = console()
        for step in () if json else steps:
            out.print(f"{step.sign} {step.what}", soft_wrap=True)
        if not steps and not json:
            out.print("nothing to do")
        if steps and not (dry_run or yes):
            typer.confirm("Do this?" if len(steps) == 1 else f"Do these {len(steps)} steps?", abort=True, err=True)
        done, trouble = (0, None) if dry_run else _carry_out(steps)
    if json:
        shown = [{"sign": step.sign, "what": step.what, "done": number < done} for number, step in enumerate(steps)]
        print_json({"steps": shown, "error": trouble.sentence if trouble else ""})
    elif done:
        out.print(f"{done} of {len(steps)} done")
    if trouble is not None and not json:
        raise trouble
    if trouble is not None:
        raise typer.Exit(ExitCode.FAILURE)


def _carry_out(steps: Sequence[Step]) -> tuple[int, PmwatchError | None]:
    """Do one step after the other; return how many were done, and what ended it early."""
    for done, step in enumerate(steps):
        try:
            step.do()
        except PmwatchError as error:
            return done, error
    return len(steps), None
