"""What a bad neighbour does to a server, with a key of its own or without one: each attack goes on until it is cancelled.

Nothing here reads answers, so that the attacks cost their machine little and the server much.
"""

import asyncio
import contextlib
import logging
import os
import ssl
from collections import Counter
from dataclasses import dataclass, field

from http2 import (DATA, END_HEADERS, HEADERS, PREFACE, SETTINGS, WINDOW_UPDATE, Connection, frame, hello,
                   message)

SERVICE, GALLERIES, JOBS = "/shipreid.v1.ShipReId", "/shipreid.v1.Galleries", "/shipreid.v1.TrainingJobs"
HALF_REQUEST = b"GET /metrics HTTP/1.1\r\nhost: "
MIB = 1 << 20
# Where the connections of the attacks come from: a neighbour has an address of its own.
ADDRESS = "127.0.0.2"


@dataclass
class Target:
    """Whom to attack, and with what."""

    port: int
    status_port: int
    authority: str
    key: str | None
    # A call of Match that costs much, and one of ExportGallery.
    search: bytes
    export: bytes
    # What an export begins with, up to its first record.
    export_head: bytes
    # Makes a call of UpdateEntries with a new name, or one of WatchTrainingJob, of a number.
    update: tuple
    watch: tuple
    tally: Counter = field(default_factory=Counter)

    async def plain(self, port=None):
        return await asyncio.open_connection("127.0.0.1", port or self.port, local_addr=(ADDRESS, 0))

    async def encrypted(self):
        context = ssl.create_default_context(cafile=self.authority)
        context.set_alpn_protocols(["h2"])
        return await asyncio.open_connection("127.0.0.1", self.port, local_addr=(ADDRESS, 0), ssl=context,
                                             server_hostname="localhost")

    def numbered(self, kind, number):
        """A message with a number in it, of always the same length."""
        before, after = kind
        return message(before + b"%012d" % number + after)


async def again(work, pause):
    """Does `work` over and over; the server may end it at any point."""
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await work()
        await asyncio.sleep(pause)


async def many(count, work, pause=0.2):
    await asyncio.gather(*(again(work, pause) for _ in range(count)))


async def held(opening, said=b""):
    """Says something, and then nothing until the server has enough of it."""
    reader, writer = await opening
    try:
        writer.write(said)
        while await reader.read(4096):
            pass
    finally:
        writer.transport.abort()


async def silent_sockets(target):
    async def one():
        target.tally["silent sockets"] += 1
        await held(target.plain())
    await many(300, one)


async def silent_sessions(target):
    """Shakes hands, and says nothing."""
    async def one():
        target.tally["silent TLS sessions"] += 1
        await held(target.encrypted())
    await many(100, one, pause=2)


async def idle_connections(target):
    """Says hello, and begins no call."""
    async def one():
        target.tally["connections without a call"] += 1
        await held(target.encrypted(), hello())
    await many(100, one, pause=2)


async def half_requests(target):
    async def one():
        target.tally["half requests to the status port"] += 1
        await held(target.plain(target.status_port), HALF_REQUEST)
    await many(200, one)


async def garbage(target):
    begun = PREFACE + frame(SETTINGS, 0, 0)
    kinds = [
        bytes(range(256)) * 16,                                               # noise
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",                                 # the wrong protocol
        begun + b"\xff\xff\xff" + frame(DATA, 0, 1)[3:],                      # a frame of 16 MiB
        begun + frame(WINDOW_UPDATE, 0, 0, bytes(4)),                         # a window that grows by nothing
        begun + frame(HEADERS, END_HEADERS, 1, b"\xff" * 5),                  # headers that are none
        begun + frame(DATA, 0, 7, b"x"),                                      # data of a call that never began
    ]

    async def one():
        for kind in kinds:
            target.tally["garbage"] += 1
            for opening in (target.encrypted, target.plain):
                with contextlib.suppress(OSError):
                    await held(opening(), kind)
        async with Connection.to(target) as connection:
            calls = [connection.call(f"{SERVICE}/Embed", target.key, data, end=True)
                     for data in (b"", b"\0\0", message(b"\xff" * 3), b"\x09" + message(b"x")[1:], message(b"x", 9))]
            target.tally["garbage"] += len(calls)
            await connection.done(calls)
    await many(4, one)


async def announced(target):
    """Announces 64 MiB, and sends one byte of them."""
    async def one():
        async with Connection.to(target) as connection:
            while not connection.over.is_set():
                calls = [connection.call(f"{SERVICE}/EmbedStream", target.key, message(b"x", 64 * MIB)) for _ in range(8)]
                target.tally["64 MiB announced"] += len(calls)
                await connection.done(calls)
    await many(8, one)


async def silent_streams(target):
    async def one():
        async with Connection.to(target) as connection:
            while not connection.over.is_set():
                calls = [connection.call(f"{SERVICE}/EmbedStream", target.key) for _ in range(64)]
                target.tally["silent streams"] += len(calls)
                await connection.done(calls)
                await asyncio.sleep(0.1)
    await many(6, one)


async def giant_imports(target):
    """Sends records of 15 MiB but for their last bytes, and announces one of 256 MiB."""
    async def one(announced_bytes):
        async with Connection.to(target) as connection:
            target.tally["imports of giant records"] += 1
            record = announced_bytes.to_bytes(4, "little") + bytes(14 * MIB)
            # ImportGalleryRequest: name = 1, data = 2.
            call = connection.call(f"{GALLERIES}/ImportGallery", target.key, message(b"\x0a\x05giant"))
            for piece in (target.export_head, *(record[at:at + MIB] for at in range(0, len(record), MIB))):
                field = b"\x12" + varint(len(piece)) + piece
                if not await connection.send(call, message(field)):
                    break
            await connection.done([call])
    await asyncio.gather(*(many(4, lambda size=size: one(size)) for size in (15 * MIB, 256 * MIB)))


async def unread_exports(target):
    """Takes no byte of what it asks for."""
    async def one():
        async with Connection.to(target, window=0) as connection:
            calls = [connection.call(f"{GALLERIES}/ExportGallery", target.key, message(target.export), end=True)
                     for _ in range(8)]
            target.tally["exports never read"] += len(calls)
            await connection.done(calls)
    await many(2, one)


async def searches(target):
    async def one():
        async with Connection.to(target) as connection:
            while not connection.over.is_set():
                target.tally["heavy searches"] += 1
                await connection.done([connection.call(f"{SERVICE}/Match", target.key, message(target.search), end=True)])
    await many(24, one)


async def updates(target):
    """Tells an entry's labels by ever new names."""
    async def one():
        async with Connection.to(target) as connection:
            while not connection.over.is_set():
                target.tally["updates with new names"] += 1
                data = target.numbered(target.update, target.tally["updates with new names"])
                await connection.done([connection.call(f"{GALLERIES}/UpdateEntries", target.key, data, end=True)])
    await many(4, one)


async def unknown_jobs(target):
    async def one():
        async with Connection.to(target) as connection:
            while not connection.over.is_set():
                first = target.tally["unknown jobs watched"]
                target.tally["unknown jobs watched"] += 50
                await connection.done([
                    connection.call(f"{JOBS}/WatchTrainingJob", target.key, target.numbered(target.watch, first + number),
                                    end=True) for number in range(50)])
    await many(2, one)


async def rejected_keys(target):
    async def one():
        async with Connection.to(target) as connection:
            while not connection.over.is_set():
                target.tally["rejected keys"] += 50
                await connection.done([connection.call(f"{SERVICE}/Embed", f"srid_{os.urandom(16).hex()}", message(b""),
                                                       end=True) for _ in range(50)])
    await many(2, one)


async def resets(target):
    """Begins calls and takes each back at once, until the server ends the connection."""
    async def one():
        async with Connection.to(target) as connection:
            while not connection.over.is_set():
                for _ in range(100):
                    target.tally["calls that were reset"] += 1
                    connection.reset(connection.call(f"{SERVICE}/Embed", target.key))
                await connection.writer.drain()
                await asyncio.sleep(0.01)
    await many(2, one)


def varint(number):
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


BY_ANYBODY = [silent_sockets, silent_sessions, idle_connections, half_requests, garbage, announced, silent_streams,
              giant_imports, unread_exports, rejected_keys, resets]
BY_TENANTS = [searches, updates, unknown_jobs]


def run(target, on, stop, results):
    """Attacks in a process of its own, until `stop` is set; `on` is set once every attack has begun, `results` gets what
    was done how often."""
    # On one machine the attacks must not win by taking the processor, which a network would not give them.
    os.nice(5)
    # That a connection is gone is no news here.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    asyncio.run(attack(target, on, stop))
    results.put(dict(target.tally))


async def attack(target, on, stop):
    attacks = BY_ANYBODY + (BY_TENANTS if target.key else [])
    running = [asyncio.create_task(one(target)) for one in attacks]
    while len(target.tally) < len(attacks) and not any(task.done() for task in running):
        await asyncio.sleep(0.05)
    on.set()
    stopping = asyncio.create_task(asyncio.to_thread(stop.wait))
    done, _ = await asyncio.wait([*running, stopping], return_when=asyncio.FIRST_COMPLETED)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    # None of them ends by itself.
    for task in done - {stopping}:
        task.result()
