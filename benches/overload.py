"""What a server does with more than it can do, and with callers that mean no good: goodput, memory, health after.

Prints a Markdown table; exit code 1 if the server is not well after any of it. Usage: overload.py [--server shipreid],
with the Python of `make python`.
"""

import argparse
import asyncio
import contextlib
import json
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benches"))

import grpc  # noqa: E402

from rolling import Server, chip, messages, page, services, until  # noqa: E402

GOLDEN = ROOT / "tests/golden/images"
# Over two, which carry 256 calls, the load would wait on the callers' side until its deadline has nearly passed.
CONNECTIONS = 32
# Of HTTP/2: the preface, and an empty SETTINGS frame.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = struct.pack(">I", 0)[1:] + b"\x04\x00" + struct.pack(">I", 0)
# Half a HEADERS frame: 64 bytes announced, none of them sent; and one whose block goes on in frames that never come.
HALF_HEADERS = struct.pack(">I", 64)[1:] + b"\x01\x04" + struct.pack(">I", 1)


def metric(server, name):
    text = page(server.metrics, "/metrics")[1]
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M))


def memory_mib(server):
    return metric(server, "process_resident_memory_bytes") / 2**20


async def peak_during(server, work):
    """What `work` returns, and the most memory seen meanwhile."""
    task, peak = asyncio.create_task(work), 0.0
    while not task.done():
        peak = max(peak, await asyncio.to_thread(memory_mib, server))
        await asyncio.wait([task], timeout=0.2)
    return task.result(), peak


async def bench(args, server, kind, seconds, *more):
    """Figures of `shipreid bench`."""
    command = [args.server, "bench", kind, "--json", "--endpoint", f"http://127.0.0.1:{server.port}", "--metrics",
               f"127.0.0.1:{server.metrics}", "--duration", str(seconds), "--warm-up", "1", *map(str, more), GOLDEN]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def good_calls(port, seconds):
    """Calls of a well-behaved caller, one after the other: how many came back, and their latencies."""
    request = messages.EmbedRequest(chips=[chip()])
    times, failed, end = [], 0, time.monotonic() + seconds
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        service = services.ShipReIdStub(channel)
        while time.monotonic() < end:
            begun = time.monotonic()
            try:
                answer = await service.Embed(request, timeout=10)
                assert answer.results[0].HasField("embedding")
                times.append(time.monotonic() - begun)
            except grpc.RpcError:
                failed += 1
    times.sort()
    return times, failed


async def connections(server, count, held):
    """Opens `count` connections that have said hello; how many the server keeps."""
    async def one():
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        held.append(writer)
        writer.write(PREFACE + SETTINGS)
        try:
            return bool(await asyncio.wait_for(reader.read(9), 10))
        except (OSError, asyncio.TimeoutError):
            return False
    return sum(await asyncio.gather(*(one() for _ in range(count))))


async def slow_headers(server, count, held):
    """Connections that begin a call's headers and never end them."""
    opened = await connections(server, count, held)
    for writer in held[-count:]:
        writer.write(HALF_HEADERS)
    return opened


async def cancelled_calls(server, count):
    """Begins calls and cancels each at once, on eight connections."""
    request = messages.EmbedRequest(chips=[chip()] * 8)
    codes = {}
    async with contextlib.AsyncExitStack() as held:
        channels = [await held.enter_async_context(grpc.aio.insecure_channel(
            f"127.0.0.1:{server.port}", options=[("grpc.use_local_subchannel_pool", 1)])) for _ in range(8)]

        async def one(number):
            call = services.ShipReIdStub(channels[number % 8]).Embed(request, timeout=10)
            await asyncio.sleep(0.002 * (number % 5))
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.RpcError):
                await call
            code = (await call.code()).name
            codes[code] = codes.get(code, 0) + 1
        for first in range(0, count, 200):
            await asyncio.gather(*(one(number) for number in range(first, first + 200)))
    return codes


def garbage(server, count):
    """Sends what is no HTTP/2, or HTTP/2 that breaks its rules; how many connections the server ends."""
    kinds = [
        bytes(range(256)) * 16,                                                    # noise
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",                                      # the wrong protocol
        PREFACE + SETTINGS + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",              # a frame of 16 MiB
        PREFACE + SETTINGS + b"\x00\x00\x04\x08\x00\x00\x00\x00\x00" + bytes(4),   # a window that grows by nothing
        PREFACE + SETTINGS + b"\x00\x00\x05\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff\xff",  # headers that are none
        PREFACE + SETTINGS + b"\x00\x00\x01\x00\x00\x00\x00\x00\x07x",             # data of a call that never began
    ]
    ended = 0
    for number in range(count):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            with contextlib.suppress(ConnectionError, socket.timeout):
                connection.sendall(kinds[number % len(kinds)])
                while connection.recv(4096):
                    pass
                ended += 1
                continue
            ended += 1
    return ended


async def is_well(server, idle_ms):
    """Ready, answers at once, and holds nothing back."""
    await until(lambda: metric(server, "shipreid_calls_in_flight") == 0 and
                metric(server, "shipreid_admitted_chips") == 0)
    times, failed = await good_calls(server.port, 2)
    well = server.is_ready() and not failed
    return f"{'yes' if well else '**no**'}, p50 {times[len(times) // 2] * 1e3 / idle_ms:.2f}x", well


async def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--server", default=ROOT / "target/release/shipreid", help="the program")
    parser.add_argument("--preset", default="small", help="the model, untrained")
    parser.add_argument("--seconds", type=float, default=10, help="of each load")
    args = parser.parse_args()
    rows, all_well = [], True
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = Server(args.server, [f"model.preset={args.preset}", "store.data_dir="], folder)
        stack.callback(server.end)
        server.start()
        await until(server.is_ready)
        await good_calls(server.port, 2)
        times, _ = await good_calls(server.port, 3)
        idle_ms = times[len(times) // 2] * 1e3

        async def row(what, work, says):
            nonlocal all_well
            found, peak = await peak_during(server, work)
            after, well = await is_well(server, idle_ms)
            all_well &= well
            rows.append((what, says(found), f"{peak:.0f} MiB", after))
            print("|", " | ".join(rows[-1]), "|", flush=True)

        async def beside(work):
            """What `work` does to a caller of good will beside it."""
            task = asyncio.create_task(work)
            times, failed = await good_calls(server.port, 3)
            return await task, times, failed

        def good(found):
            _, times, failed = found
            p50 = times[len(times) // 2] * 1e3 / idle_ms if times else float("inf")
            return f"good calls beside it: {len(times)} answered, {failed} failed, p50 {p50:.2f}x"

        print("| what | what came of it | peak memory | well after; one idle call |\n|---|---|---|---|")
        memory = memory_mib(server)
        rows.append(("idle", f"p50 {idle_ms:.2f} ms", f"{memory:.0f} MiB", ""))
        print("|", " | ".join(rows[-1]), "|", flush=True)
        capacity = None

        def goodput(found):
            refused = ", ".join(f"{count} {code}" for code, count in found["calls_failed"].items()) or "none"
            each = found["images_per_server_cpu_second"] / capacity["images_per_server_cpu_second"]
            return (f"goodput {found['images_per_second'] / capacity['images_per_second']:.3f} of capacity, "
                    f"{each:.3f} of it a server CPU-second; "
                    f"p99 of answered {found['latency_ms']['p99']:.0f} ms; refused: {refused}")

        async def closed():
            nonlocal capacity
            capacity = await bench(args, server, "closed", args.seconds, "--concurrency", 16)
            return capacity
        await row("as much as it can do (16 in flight)", closed(),
                  lambda found: f"{found['images_per_second']:.0f} images per second")
        for factor in (3, 10):
            rate = factor * capacity["images_per_second"]
            await row(f"{factor}x as much (Poisson, deadline 2 s)",
                      bench(args, server, "open", args.seconds, "--rate", f"{rate:.0f}", "--timeout", 2,
                            "--connections", CONNECTIONS), goodput)
        held = []
        await row("1,000 more connections", beside(connections(server, 1000, held)),
                  lambda found: f"{found[0]} kept; {good(found)}")
        for writer in held:
            writer.close()
        await until(lambda: metric(server, "shipreid_connections") < 10)
        held = []
        await row("500 connections that never end a call's headers", beside(slow_headers(server, 500, held)), good)
        for writer in held:
            writer.close()
        await row("4,000 calls of 8 chips, cancelled within 8 ms", beside(cancelled_calls(server, 4000)), good)
        await row("600 connections of garbage", beside(asyncio.to_thread(garbage, server, 600)),
                  lambda found: f"{found[0]} ended by the server; {good(found)}")
    sys.exit(0 if all_well else 1)


if __name__ == "__main__":
    asyncio.run(main())
