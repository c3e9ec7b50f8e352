"""`pmwatch sandbox`: a local ProcessMind to try things on."""

import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pmwatch.cli import app
from pmwatch.cli.api import KEY_VARIABLE, TENANT_VARIABLE, URL_VARIABLE
from pmwatch.cli.common import console
from pmwatch.config import split_listen
from pmwatch.errors import PmwatchError
from pmwatch.sandbox import Fault, SandboxServer, serve


@app.command()
def sandbox(
    *,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where to serve; port 0 takes a free one.")
    ] = "127.0.0.1:9100",
    state: Annotated[
        str | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="Keep tenants, keys and objects here, not in a new directory, which goes at the end.",
        ),
    ] = None,
    ready_file: Annotated[
        str | None,
        typer.Option(
            "--ready-file",
            metavar="FILE",
            help="Write base_url, tenants and keys here, as JSON, once it serves.",
        ),
    ] = None,
    env_file: Annotated[
        str | None,
        typer.Option(
            "--env-file",
            metavar="FILE",
            help="Write shell variables with which pmwatch api, apply and upload find it, once it serves.",
        ),
    ] = None,
    tenants: Annotated[
        int, typer.Option("--tenants", metavar="N", min=1, max=100, help="How many tenants a new sandbox has.")
    ] = 1,
    fault: Annotated[
        list[str] | None,
        typer.Option("--fault", metavar="RULE", help='Answer with trouble, such as "PUT 503 x3"; may be repeated.'),
    ] = None,
) -> None:
    """Serve a local ProcessMind: its API, and storage that verifies presigned URLs as S3 does. Ends with Ctrl-C.

    Its address in a browser lists what arrived, and /sandbox/openapi.json there describes the API.

    It asks nobody for permission to be looked at: keep it on this machine.

    A RULE of --fault is METHOD STATUS, then any of xTIMES (x* for ever), before, mid or after, close, delay=S,
    retry-after=S, code=CODE and path=PART. "PUT 503 x3" refuses the next three PUTs, "GET 429 x* path=presignedurl"
    every URL; status 0 with delay=S is only slow; mid cuts the connection within a body, after loses the answer.
    """
    host, port = _address(listen)
    for rule in fault or ():
        _check_rule(rule)
    _check_directory("--env-file", env_file)
    _check_directory("--ready-file", ready_file)

    def tell(server: SandboxServer) -> None:
        out = console()
        out.print(f"ProcessMind sandbox on {server.base_url} (objects in {directory})")
        for tenant in server.tenants:
            out.print(f"tenant {tenant['name']}: id {tenant['id']}, API key {tenant['api_key']}")
            for dataset in tenant["datasets"]:
                for table in dataset["datatables"]:
                    out.print(f"  {dataset['name']}/{table['name']}: {table['id']}")
        if env_file:
            _write_variables(env_file, server)

    with _state_directory(state) as directory:
        try:
            serve(host, port, directory, Path(ready_file) if ready_file else None, fault or [], tell, tenants=tenants)
        except OSError as error:
            raise PmwatchError(
                f"the sandbox cannot serve on {listen} with {directory}: {error.strerror}",
                hint="Another program may use that port: choose one with --listen, or port 0 for a free one.",
            ) from None


def _address(listen: str) -> tuple[str, int]:
    try:
        return split_listen(listen)
    except ValueError:
        raise typer.BadParameter(f'--listen {listen}: write HOST:PORT, such as "127.0.0.1:9100"') from None


def _check_directory(option: str, file: str | None) -> None:
    if file and not os.path.isdir(os.path.dirname(os.path.abspath(file))):
        raise typer.BadParameter(f"{option} {file}: there is no such directory")


@contextmanager
def _state_directory(state: str | None) -> Iterator[Path]:
    """Yield the named directory, which stays, or a new one, which goes at the end."""
    if state is None:
        with tempfile.TemporaryDirectory(prefix="pmwatch-sandbox-", ignore_cleanup_errors=True) as new:
            yield Path(new)
        return
    try:
        os.makedirs(state, mode=0o700, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"--state {state}: {error.strerror}") from None
    yield Path(state)


def _write_variables(path: str, server: SandboxServer) -> None:
    """Write where the sandbox is, its first tenant and that one's key, for nobody else to read."""
    tenant = server.tenants[0]
    values = {URL_VARIABLE: server.base_url, KEY_VARIABLE: tenant["api_key"], TENANT_VARIABLE: tenant["id"]}
    text = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())
    partial = f"{path}.{os.getpid()}.tmp"
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, path)  # who waits for it finds it whole


def _check_rule(rule: str) -> None:
    try:
        Fault.parse(rule)
    except ValueError as error:
        raise typer.BadParameter(
            f"--fault {rule!r}: {error}; write METHOD STATUS [xTIMES] [before|mid|after] [close] [delay=S] "
            '[retry-after=S] [code=CODE] [path=PART], such as "PUT 503 x3 retry-after=5"'
        ) from None
