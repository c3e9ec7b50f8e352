"""A TCP proxy that holds back every byte for half a round trip, in both directions: a server that is far away.

PYTHONPATH=tests python -m benchmarks.delay --to 127.0.0.1:18333 --rtt-ms 40      # prints its port, until killed
"""

import argparse
import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

READ_BYTES: Final = 65536
_UNSENT: Final = 1024  # chunks on their way


async def _read(reader: asyncio.StreamReader, way: "asyncio.Queue[tuple[float, bytes]]", seconds: float) -> None:
    chunk = b"."
    while chunk:
        try:
            chunk = await reader.read(READ_BYTES)
        except OSError:
            chunk = b""
        await way.put((time.monotonic() + seconds, chunk))


async def _write(way: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while True:
            due, chunk = await way.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if not chunk:
                break
            writer.write(chunk)
            await writer.drain()
    writer.close()


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def delayed(host: str, port: int, seconds: float) -> Serve:
    """Return what serves one connection: a connection of its own to the server, one way late and the other too."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2 * seconds)  # of TCP's handshake
        far_reader, far_writer = await asyncio.open_connection(host, port)
        ways: list[asyncio.Queue[tuple[float, bytes]]] = [asyncio.Queue(_UNSENT), asyncio.Queue(_UNSENT)]
        await asyncio.gather(
            _read(reader, ways[0], seconds),
            _write(ways[0], far_writer),
            _read(far_reader, ways[1], seconds),
            _write(ways[1], writer),
        )

    return serve


async def _main(options: argparse.Namespace) -> None:
    host, _, port = options.to.rpartition(":")
    server = await asyncio.start_server(delayed(host, int(port), options.rtt_ms / 2000), "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", required=True, help="HOST:PORT of the server")
    parser.add_argument("--rtt-ms", type=float, default=40.0, help="round trip to add")
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
