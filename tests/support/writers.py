"""Programs that write into a drop folder as slow, rude or mortal ones do: `python writers.py PROGRAM ARGUMENT…`.

They run as processes of their own, so that what the kernel says of their open files is real, and import nothing
of the project. Pauses are seconds. `slow_server` is the one part for the test itself.
"""

import importlib
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

_PIECES: Final = 4


def torn(content: bytes) -> bytes:
    """Return the first half of a CSV, cut within the first field of a line."""
    return content[: content.index(b"\n", len(content) // 2) + 4]


def _pieces(content: bytes) -> Iterator[bytes]:
    size = len(content) // _PIECES + 1
    for start in range(0, len(content), size):
        yield content[start : start + size]


def _write_slowly(fd: int, content: bytes, pause: float) -> None:
    for piece in _pieces(content):
        os.write(fd, piece)
        time.sleep(pause)


def appender(source: str, target: str, pause: str) -> None:
    """Write piece by piece, with pauses, and keep the file open."""
    with open(target, "ab", buffering=0) as out:
        _write_slowly(out.fileno(), Path(source).read_bytes(), float(pause))


def reopening_appender(source: str, target: str, pause: str) -> None:
    """Open, append a piece and close, again and again, as `>>` in a shell loop does."""
    for piece in _pieces(Path(source).read_bytes()):
        with open(target, "ab", buffering=0) as out:
            out.write(piece)
        time.sleep(float(pause))


def temporary(source: str, target: str, pause: str) -> None:
    """Write under a temporary name, and rename."""
    appender(source, f"{target}.tmp", pause)
    os.rename(f"{target}.tmp", target)


def dies(source: str, target: str) -> None:
    """Write the first half, and die with the file open."""
    with open(target, "wb", buffering=0) as out:
        out.write(torn(Path(source).read_bytes()))
        os.kill(os.getpid(), signal.SIGKILL)


def rewriter(source: str, target: str, pause: str) -> None:
    """Write it all again from the start, piece by piece, as a job that runs once more does."""
    with open(target, "wb", buffering=0) as out:
        _write_slowly(out.fileno(), Path(source).read_bytes(), float(pause))


def truncator(source: str, target: str, pause: str) -> None:
    """Empty the file and leave it so for a while; then write it slowly again."""
    os.truncate(target, 0)
    time.sleep(float(pause))
    appender(source, target, pause)


def unnamed(source: str, target: str, pause: str) -> None:
    """Write a file without a name (O_TMPFILE), and link it into place when it is whole."""
    fd = os.open(os.path.dirname(target), os.O_TMPFILE | os.O_WRONLY, 0o644)
    _write_slowly(fd, Path(source).read_bytes(), float(pause))
    directory = os.open(os.path.dirname(target), os.O_PATH)
    os.link(f"/proc/self/fd/{fd}", target, src_dir_fd=directory, follow_symlinks=True)  # without src_dir_fd: link(2)
    os.close(fd)


def mapped(source: str, target: str, pause: str) -> None:
    """Set the size, map the file, close it, and write the content into memory: no event tells of that."""
    content = Path(source).read_bytes()
    with open(target, "wb+") as out:
        out.truncate(len(content))
        out.write(content[: len(content) // 2])
        out.flush()
        memory = mmap.mmap(out.fileno(), len(content))
    time.sleep(float(pause))
    memory[:] = content
    memory.close()


def office(source: str, target: str, pause: str) -> None:
    """Save as LibreOffice does where it can rename: lock file, temporary file, rename over the old version."""
    lock, temporary_file = _office_names(target)
    lock.write_text("tests,tester,host,10.07.2026 09:00,file:///home/tester;")
    appender(source, str(temporary_file), pause)
    os.replace(temporary_file, target)
    lock.unlink()


def office_in_place(source: str, target: str, pause: str) -> None:
    """Save as LibreOffice does elsewhere: copy the temporary file into the old one, and open that once more."""
    lock, temporary_file = _office_names(target)
    lock.write_text("tests,tester,host,10.07.2026 09:00,file:///home/tester;")
    appender(source, str(temporary_file), pause)
    with open(target, "wb", buffering=0) as out:
        _write_slowly(out.fileno(), temporary_file.read_bytes(), float(pause))
    with open(target, "rb+"):
        os.utime(target)
    temporary_file.unlink()
    lock.unlink()


def _office_names(target: str) -> tuple[Path, Path]:
    directory, name = os.path.split(target)
    return Path(directory, f".~lock.{name}#"), Path(directory, f"lu{os.getpid()}abc.tmp")


def sftp_put(config: str, host: str, source: str, target: str) -> None:
    """Upload with paramiko, straight to the final name."""
    with _paramiko(config, host) as client, client.open_sftp() as sftp:
        sftp.put(source, target)


def sftp_rename(config: str, host: str, source: str, target: str, pause: str) -> None:
    """Upload with paramiko to a temporary name, and rename later in the plain way: OpenSSH links and unlinks."""
    directory, name = os.path.split(target)
    with _paramiko(config, host) as client, client.open_sftp() as sftp:
        sftp.put(source, f"{directory}/.in.{name}")
        time.sleep(float(pause))
        sftp.rename(f"{directory}/.in.{name}", target)


def _paramiko(config: str, host: str) -> Any:
    """Return a connected client that uses the same configuration as OpenSSH's."""
    paramiko: Any = importlib.import_module("paramiko")
    server = paramiko.SSHConfig.from_path(config).lookup(host)
    client = paramiko.SSHClient()
    client.load_host_keys(server["userknownhostsfile"])
    login = {"port": int(server["port"]), "username": server["user"], "key_filename": server["identityfile"]}
    client.connect(server["hostname"], **login, allow_agent=False, look_for_keys=False)
    return client


@contextmanager
def slow_server(content: bytes, pause: float) -> Iterator[str]:
    """Serve `content` over HTTP on loopback, piece by piece with pauses; yield the URL."""
    never = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            for piece in _pieces(content):
                self.wfile.write(piece)
                never.wait(pause)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class calls it so
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/export"
        finally:
            server.shutdown()
            thread.join()


def is_open_for_writing(path: Path) -> bool:
    """Tell whether any process of this machine has the file open for writing, by /proc."""
    return any(_writes(fd, str(path)) for fd in Path("/proc").glob("[0-9]*/fd/*"))


def _writes(fd: Path, path: str) -> bool:
    try:
        if os.readlink(fd) != path:
            return False
        info = (fd.parent.parent / "fdinfo" / fd.name).read_text()
    except OSError:
        return False  # the process has ended, or belongs to somebody else
    flags = next(int(line.split()[1], 8) for line in info.splitlines() if line.startswith("flags:"))
    return flags & os.O_ACCMODE != os.O_RDONLY


PROGRAMS: Final[Mapping[str, Callable[..., None]]] = {
    program.__name__: program
    for program in (
        appender,
        reopening_appender,
        temporary,
        dies,
        rewriter,
        truncator,
        unnamed,
        mapped,
        office,
        office_in_place,
        sftp_put,
        sftp_rename,
    )
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
