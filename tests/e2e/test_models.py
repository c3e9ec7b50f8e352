"""Folders of BPMN models, and the rows that arrived, with the whole daemon."""

import json
from pathlib import Path

from pmwatch import Client
from pmwatch.sandbox import SandboxServer
from support.daemon import Daemon, folder_toml, stored, wait_for

MODEL = (
    '<?xml version="1.0" encoding="UTF-16"?>'
    '<bpmn:definitions xmlns:bpmn="http://www.omg.org/spec/BPMN/20100524/MODEL" targetNamespace="x">'
    '<bpmn:process id="p" name="{name}"/></bpmn:definitions>'
)


def test_models_and_logs_go_side_by_side_each_to_its_own(tmp_path: Path, sandbox: SandboxServer, drop: Path) -> None:
    tenant = sandbox.tenants[0]
    models = tmp_path / "models"
    (models / "Claims").mkdir(parents=True)
    (models / "Brand new").mkdir()
    with Client(tenant["api_key"], base_url=sandbox.base_url) as client:
        client.create_process(tenant["id"], "Claims")
    datatable = tenant["datasets"][0]["datatables"][0]["id"]
    folders = folder_toml("orders", drop, datatable=datatable, after_upload='"archive"')
    folders += folder_toml("models", models / "{process}", after_upload='"archive"', create_missing="true")
    with Daemon.for_sandbox(tmp_path, sandbox, folders) as daemon:
        daemon.extra = 'ask_rows_after = "100ms"'
        daemon.start()
        (drop / "orders.csv").write_text("id\n1\n2\n")
        (models / "Claims/claims.bpmn").write_bytes(MODEL.format(name="Größe").encode("utf-16"))
        (models / "Brand new/new.bpmn").write_text(MODEL.format(name="new").replace("16", "8"))
        (models / "Claims/wrong.bpmn").write_text("<html/>")
        wait_for(
            "all have ended",
            lambda: sorted(one.state for one in daemon.deliveries()) == ["done", "done", "done", "held"],
        )
        wait_for("rows are told", lambda: [one.row_count for one in daemon.deliveries() if one.row_count] == [2])
        assert "2 rows in" in daemon.command("history").stdout  # and "the datatable", in the cell's next line
        told = json.loads(daemon.command("history", "--json").stdout)["deliveries"]
        assert {one["target"] for one in told} == {f"demo/{datatable}", "demo/process:Claims", "demo/process:Brand new"}
        assert "demo/process:{process}" in daemon.command("status", "--json").stdout
    assert stored(sandbox).keys() == {"orders.csv"}
    held = {process["displayName"]: process["bpmn"] for _, process in sandbox.sandbox.models()}
    assert held == {
        "Claims": MODEL.format(name="Größe").replace("UTF-16", "UTF-8"),
        "Brand new": MODEL.format(name="new").replace("UTF-16", "UTF-8"),
    }
    assert not (models / "Claims/claims.bpmn").exists()
