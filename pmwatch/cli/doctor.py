"""`pmwatch doctor`: would it work here?"""

import dataclasses

import typer
from rich.table import Table

from pmwatch.cli import app
from pmwatch.cli.common import ConfigOption, JsonOption, console, http_of, print_json, settings_of
from pmwatch.doctor import (
    Finding,
    Level,
    check_folder,
    check_inotify,
    check_ledger,
    check_state,
    check_target,
    check_tenant,
)
from pmwatch.errors import ExitCode
from pmwatch.intake.evidence import quietens_leases
from pmwatch.log import register_secret
from pmwatch.processmind.keys import KeyRing


@app.command()
def doctor(*, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Look at folders, state, limits and the API with each tenant's key, and say what to do. Exits 1 on an error."""
    settings = settings_of(config)
    quietens_leases()
    keys = KeyRing(settings.tenants, on_key=register_secret)
    http = http_of(settings)
    findings = [check_state(settings.state.dir), *check_ledger(settings.state.dir), *check_inotify(settings.folders)]
    findings += [finding for folder in settings.folders for finding in check_folder(folder)]
    url = settings.api.base_url
    answers = {tenant.name: check_tenant(tenant, keys=keys, http=http, base_url=url) for tenant in settings.tenants}
    findings += answers.values()
    reachable = {tenant.name: tenant for tenant in settings.tenants if answers[tenant.name].level is not Level.ERROR}
    findings += [
        check_target(folder, reachable[folder.target.tenant], keys=keys, http=http, base_url=url)
        for folder in settings.folders
        if not folder.levels and folder.target.tenant in reachable
    ]
    http.close()
    if json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        _show(findings)
    if any(finding.level is Level.ERROR for finding in findings):
        raise typer.Exit(ExitCode.FAILURE)


def _show(findings: list[Finding]) -> None:
    table = Table("", "what", "finding")
    for finding in findings:
        table.add_row(
            str(finding.level), finding.what, "\n".join(part for part in (finding.says, finding.hint) if part)
        )
    console().print(table)
