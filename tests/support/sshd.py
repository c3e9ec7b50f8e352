"""A real OpenSSH server on loopback, with host key, user key and client configuration of its own."""

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.services import free_port, missing, require_tool

_START_SECONDS = 20.0
HOST = "drop"


@dataclass(frozen=True, slots=True)
class Sshd:
    """A running server. With `ssh -F config`, the host `drop` is the server, and lets in without a question."""

    user: str
    config: Path

    @property
    def command(self) -> str:
        """The command line by which rsync and lftp start ssh."""
        return f"ssh -a -x -F {self.config}"


@contextmanager
def running_sshd(directory: Path) -> Iterator[Sshd]:
    """Run sshd with internal-sftp for the user of this process; keys, configuration and log lie in `directory`."""
    program, keygen = _sshd(), require_tool("ssh-keygen", "openssh-client")
    for name in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
    shutil.copyfile(directory / "user.pub", directory / "authorized_keys")
    if os.getuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)  # where sshd locks its unprivileged child in
    server = _write_configuration(directory, free_port())
    log = directory / "sshd.log"
    with log.open("wb") as output:
        process = subprocess.Popen([program, "-D", "-e", "-f", directory / "sshd_config"], stderr=output)
    try:
        deadline = time.monotonic() + _START_SECONDS
        # Its log tells when it listens; an unauthenticated connection would earn this address a penalty.
        while "Server listening" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield server
    finally:
        process.terminate()
        process.wait()


def _sshd() -> str:
    """Return sshd's absolute path, which it needs to start itself again for each connection."""
    found = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
    if found is None:
        missing("sshd", "openssh-server")
    return found


def _write_configuration(directory: Path, port: int) -> Sshd:
    """Write the configuration of both sides, and the server's key as the client knows it."""
    user = pwd.getpwuid(os.getuid()).pw_name
    host_key = (directory / "host.pub").read_text()
    (directory / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    of_server = {
        "ListenAddress": "127.0.0.1",
        "Port": port,
        "HostKey": directory / "host",
        "AuthorizedKeysFile": directory / "authorized_keys",
        "PidFile": "none",
        "StrictModes": "no",  # the directories above belong to whoever runs the tests
        "UsePAM": "no",
        "PermitRootLogin": "prohibit-password",
        "MaxStartups": 100,
        "Subsystem": "sftp internal-sftp",
    }
    of_client = {
        "Host": HOST,
        "HostName": "127.0.0.1",
        "Port": port,
        "User": user,
        "IdentityFile": directory / "user",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "UserKnownHostsFile": directory / "known_hosts",
        "StrictHostKeyChecking": "yes",
        "BatchMode": "yes",
        "LogLevel": "ERROR",
    }
    for name, settings in (("sshd_config", of_server), ("ssh_config", of_client)):
        (directory / name).write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    return Sshd(user, directory / "ssh_config")
