"""Restarts servers under load: two `encode` replicas behind HAProxy one after the other, then one with galleries.

Exit code 1 if a call to the replicas failed, or an enrolment was lost. Usage: rolling.py [--server shipreid], with the
Python of `make python`, and HAProxy.
"""

import argparse
import asyncio
import contextlib
import csv
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/python"))

import grpc  # noqa: E402
from google.rpc import error_details_pb2  # noqa: E402
from grpc_status import rpc_status  # noqa: E402

from contract import chips, gallery_messages, gallery_services, messages, services  # noqa: E402

GOLDEN = ROOT / "tests/golden"
DEADLINE = 10
# docs/operations.md, "What clients should do".
BACKOFF_FIRST, BACKOFF_MAX, GIVE_UP = 0.25, 10.0, 120.0


def free_ports(count):
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def page(port, path):
    """Status and text of a page, or None where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError:
        return None


async def until(reached):
    while not reached():
        await asyncio.sleep(0.02)


class Server:
    """A server process on fixed ports, so that it can come back."""

    def __init__(self, program, settings, folder):
        self.port, self.metrics = free_ports(2)
        self.log = open(folder / f"{self.port}.log", "a")
        settings = [f"server.listen=127.0.0.1:{self.port}", f"server.metrics_listen=127.0.0.1:{self.metrics}",
                    *settings]
        self.command = [program, "serve", *(word for setting in settings for word in ("--set", setting))]
        self.process = None

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)

    def is_ready(self):
        assert self.process.poll() is None, Path(self.log.name).read_text()
        return page(self.metrics, "/readyz") == (200, "ready\n")

    async def restart(self):
        """Seconds from SIGTERM to its end, and from there until it is ready again."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        await until(lambda: self.process.poll() is not None)
        assert self.process.returncode == 0, f"exit code {self.process.returncode}"
        ended = time.monotonic()
        self.start()
        await until(self.is_ready)
        return ended - begun, time.monotonic() - ended

    def end(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Balancer:
    """HAProxy with the shipped file, its ports replaced."""

    def __init__(self, servers, folder):
        self.port, self.status = free_ports(2)
        text = (ROOT / "deploy/haproxy/haproxy.cfg").read_text()
        second, = (line for line in text.splitlines() if line.startswith("  server encode-2"))
        for number in range(3, len(servers) + 1):
            third = second.replace("encode-2", f"encode-{number}")
            third = third.replace("50062", f"5006{number}").replace("9062", f"906{number}")
            text = text.replace("\n\n# Who is up", f"\n{third}\n\n# Who is up")
        ports = {"127.0.0.1:50051": self.port, "127.0.0.1:8404": self.status}
        for number, server in enumerate(servers, 1):
            ports[f"127.0.0.1:5006{number}"] = server.port
            ports[f"check port 906{number}"] = server.metrics
        for found, port in ports.items():
            assert found in text, f"haproxy.cfg has no {found}"
            text = text.replace(found, found[: -len(found.split()[-1].split(":")[-1])] + str(port))
        config = folder / "haproxy.cfg"
        config.write_text(text)
        self.process = subprocess.Popen(["haproxy", "-f", config], stderr=open(folder / "haproxy.log", "w"))

    def up(self):
        """How many servers it sends calls to."""
        found = page(self.status, "/;csv")
        rows = csv.DictReader(found[1].lstrip("# ").splitlines()) if found else []
        return sum(row["svname"].startswith("encode-") and row["status"] == "UP" for row in rows)

    def end(self):
        self.process.kill()
        self.process.wait()


def chip():
    image = (GOLDEN / "images/0003_c_25x110_SAR.tif").read_bytes()
    return chips.Chip(image=image, modality=chips.MODALITY_SAR)


async def roll(servers, balancer, calls, rate):
    """Constant load over the restarts of both; what failed, by code."""
    failed, tasks, times = {}, set(), []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{balancer.port}") as channel:
        service = services.ShipReIdStub(channel)
        request = messages.EmbedRequest(chips=[chip()])

        async def call():
            begun = time.monotonic()
            try:
                answer = await service.Embed(request, timeout=DEADLINE)
                code = None if answer.results[0].HasField("embedding") else answer.results[0].error.reason
            except grpc.RpcError as error:
                code = f"{error.code().name}: {error.details()}"
            times.append(time.monotonic() - begun)
            if code:
                failed[code] = failed.get(code, 0) + 1

        async def restarts():
            took = []
            for server in servers:
                took.append(await server.restart())
                await until(lambda: balancer.up() == len(servers))
            return took

        await call()
        assert not failed, failed
        rolling = asyncio.create_task(restarts())
        begun, sent = time.monotonic(), 0
        while sent < calls or not rolling.done():
            sent += 1
            tasks.add(asyncio.create_task(call()))
            await asyncio.sleep(max(0, begun + sent / rate - time.monotonic()))
        seconds = time.monotonic() - begun
        await asyncio.gather(*tasks)
    times.sort()
    return {"calls": sent, "rate": sent / seconds, "failed": failed, "took": rolling.result(),
            "p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}


def advised(error):
    """Seconds that the server asks to wait, if it does."""
    wait = error_details_pb2.RetryInfo()
    status = rpc_status.from_call(error)
    if status and any(detail.Unpack(wait) for detail in status.details if detail.Is(wait.DESCRIPTOR)):
        return wait.retry_delay.seconds + wait.retry_delay.nanos / 1e9
    return BACKOFF_FIRST


def enrol_until(port, is_enough, at_once, progress):
    """Enrols chips by the documented policy; how long nothing could be enrolled, and how often it was tried."""
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    service = gallery_services.GalleriesStub(channel)
    one = chip()
    longest, tries, sent, acknowledged = 0.0, 0, 0, set()
    while not is_enough(sent):
        left = [gallery_messages.EnrollRequest(gallery="harbour", entry_id=f"e{sent + number}", chip=one)
                for number in range(at_once)]
        sent += at_once
        failures, since = 0, None
        while left:
            tries += 1
            try:
                for answer in service.Enroll(iter(left), timeout=DEADLINE):
                    assert not answer.HasField("error"), answer.error
                    acknowledged.add(answer.entry_id)
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.UNAVAILABLE, error
                since = since or time.monotonic()
                assert time.monotonic() - since < GIVE_UP, error
                wait = min(advised(error) * 2**failures, BACKOFF_MAX)
                failures += 1
                time.sleep(wait * random.uniform(0.5, 1))
            left = [item for item in left if item.entry_id not in acknowledged]
        if since:
            longest = max(longest, time.monotonic() - since)
        progress(len(acknowledged))
    names, token = [], ""
    while True:
        found = service.ListEntries(gallery_messages.ListEntriesRequest(gallery="harbour", page_token=token))
        names += [entry.entry_id for entry in found.entries]
        token = found.next_page_token
        if not token:
            break
    lost = sorted(acknowledged - set(names))
    assert len(acknowledged) == sent
    return {"enrolled": len(names), "lost": lost, "double": len(names) - len(set(names)), "away": longest,
            "streams": tries}


async def restart_under_enrolment(server, count, at_once):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        create = gallery_services.GalleriesStub(channel).CreateGallery
        create(gallery_messages.CreateGalleryRequest(name="harbour"), timeout=DEADLINE)
    enrolled, took = 0, None

    def progress(done):
        nonlocal enrolled
        enrolled = done

    def is_enough(sent):
        return took is not None and sent >= count

    enrolling = asyncio.create_task(asyncio.to_thread(enrol_until, server.port, is_enough, at_once, progress))
    await until(lambda: enrolled >= at_once or enrolling.done())
    took = await server.restart()
    return await enrolling | {"took": took}


def imported_model(program, folder):
    """A small model in `folder`, from the recorded checkpoint."""
    model = folder / "model"
    subprocess.run([program, "model", "import", GOLDEN / "ckpt_wrapped.pth", model, "--heads", "2", "--image", "64x32"],
                   check=True, stdout=subprocess.DEVNULL)
    return model


async def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--server", default=ROOT / "target/release/shipreid", help="the program")
    parser.add_argument("--calls", type=int, default=5000, help="calls to the replicas, at least")
    parser.add_argument("--rate", type=float, default=250, help="of them a second")
    parser.add_argument("--entries", type=int, default=2000, help="entries to enrol, at least")
    args = parser.parse_args()
    with contextlib.ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        model = imported_model(args.server, folder)
        encode = [Server(args.server, [f"model.path={model}", "store.data_dir="], folder) for _ in range(2)]
        state = Server(args.server, [f"model.path={model}", f"store.data_dir={folder / 'data'}"], folder)
        for server in (*encode, state):
            held.callback(server.end)
            server.start()
            await until(server.is_ready)
        balancer = Balancer(encode, folder)
        held.callback(balancer.end)
        await until(lambda: balancer.up() == 2)

        rolled = await roll(encode, balancer, args.calls, args.rate)
        for code, count in rolled["failed"].items():
            print(f"{count} calls failed with {code}", file=sys.stderr)
        stored = await restart_under_enrolment(state, args.entries, at_once=16)

    failed = sum(rolled["failed"].values())
    print("| | |\n|---|---|")
    print(f"| calls to two `encode` replicas behind HAProxy, both restarted | {rolled['calls']}, "
          f"{rolled['rate']:.0f} a second |")
    print(f"| of these failed | **{failed}** |")
    print(f"| p50, p99 of all | {rolled['p50'] * 1e3:.1f}, {rolled['p99'] * 1e3:.1f} ms |")
    print("| SIGTERM to end, end to ready, each | "
          + "; ".join(f"{down:.1f} s, {up:.1f} s" for down, up in rolled["took"]) + " |")
    print(f"| entries enrolled while `state` was restarted | {stored['enrolled']} in {stored['streams']} streams |")
    print(f"| lost, double | **{len(stored['lost'])}**, {stored['double']} |")
    print(f"| `state`: SIGTERM to end, end to ready | {stored['took'][0]:.1f} s, {stored['took'][1]:.1f} s |")
    print(f"| longest that the client could not enrol | {stored['away']:.1f} s |")
    sys.exit(1 if failed or stored["lost"] or stored["double"] else 0)


if __name__ == "__main__":
    asyncio.run(main())
