"""Restarts three servers that share galleries in PostgreSQL one after the other, behind HAProxy, under EnrollEntries and
Match.

Exit code 1 if a call failed, or an entry was lost or stored twice. Callers try nothing again. Usage: rolling_cluster.py
[--server shipreid], with the Python of `make python`, and the programs of `make operators`.
"""

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from pathlib import Path

from rolling import ROOT, Balancer, Server, grpc, imported_model, until

from contract import chips, gallery_messages, gallery_services, messages, services
from postgres import Postgres

GALLERY = "harbour"
SERVERS = 3
ITEMS = 4
DIMENSION = 16
DEADLINE = 60


def vector(number):
    return chips.Embedding(values=[1.0, *(number >> bit & 1 for bit in range(DIMENSION - 1))])


class Calls:
    """Calls of several callers; what failed, by code, and which entries were acknowledged."""

    def __init__(self, channel, model):
        self.match, self.enrol = services.ShipReIdStub(channel).Match, gallery_services.GalleriesStub(channel).EnrollEntries
        self.model, self.failed, self.acknowledged, self.times, self.sent = model, {}, [], [], 0

    async def one(self, number):
        begun = time.monotonic()
        try:
            wrong = await (self.enrol_some(number) if number % 2 else self.match_one(number))
        except grpc.RpcError as error:
            wrong = f"{error.code().name}: {error.details()}"
        self.times.append(time.monotonic() - begun)
        if wrong:
            self.failed[wrong] = self.failed.get(wrong, 0) + 1

    async def enrol_some(self, number):
        entries = [gallery_messages.EnrollRequest(
            entry_id=f"{number}-{item}", vessel_id=f"vessel-{number % 50}",
            embedding=gallery_messages.ReadyEmbedding(embedding=vector(number * ITEMS + item), model=self.model,
                                                      modality=chips.MODALITY_SAR)) for item in range(ITEMS)]
        request = gallery_messages.EnrollEntriesRequest(gallery=GALLERY, entries=entries)
        results = (await self.enrol(request, timeout=DEADLINE)).results
        self.acknowledged += [result.entry_id for result in results if not result.HasField("error")]
        return next((result.error.reason for result in results if result.HasField("error")), None)

    async def match_one(self, number):
        query = messages.MatchQuery(embedding=vector(number), modality=chips.MODALITY_SAR)
        answer = await self.match(messages.MatchRequest(gallery=GALLERY, queries=[query]), timeout=DEADLINE)
        return answer.results[0].error.reason if answer.results[0].HasField("error") else None

    async def until(self, rolling, calls, callers):
        """Callers that each call as soon as they are answered, so that a slow machine is not overwhelmed."""
        begun = time.monotonic()

        async def caller():
            while self.sent < calls or not rolling.done():
                self.sent += 1
                await self.one(self.sent)

        await asyncio.gather(*(caller() for _ in range(callers)))
        self.seconds = time.monotonic() - begun


def entries(server):
    """The ids that a server lists."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        service = gallery_services.GalleriesStub(channel)
        names, token = [], ""
        while True:
            request = gallery_messages.ListEntriesRequest(gallery=GALLERY, page_size=1000, page_token=token)
            page = service.ListEntries(request, timeout=DEADLINE)
            names += [entry.entry_id for entry in page.entries]
            token = page.next_page_token
            if not token:
                return names


async def roll(servers, balancer, calls, callers):
    took = []

    async def restarts():
        for server in servers:
            took.append(await server.restart())
            await until(lambda: balancer.up() == len(servers))

    async with grpc.aio.insecure_channel(f"127.0.0.1:{balancer.port}") as channel:
        create = gallery_services.GalleriesStub(channel).CreateGallery
        made = await create(gallery_messages.CreateGalleryRequest(name=GALLERY), timeout=DEADLINE)
        load = Calls(channel, made.gallery.model)
        await load.until(asyncio.create_task(restarts()), calls, callers)
    return load, took


async def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--server", default=ROOT / "target/release/shipreid", help="the program")
    parser.add_argument("--calls", type=int, default=5000, help="calls, at least")
    parser.add_argument("--callers", type=int, default=8, help="calls at once")
    args = parser.parse_args()
    with contextlib.ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        model = imported_model(args.server, folder)
        database = Postgres()
        held.callback(database.end)
        servers = [Server(args.server, [f"model.path={model}", f"store.url={database.url}",
                                        f"store.data_dir={folder / str(number)}"], folder) for number in range(SERVERS)]
        for server in servers:
            held.callback(server.end)
            server.start()
            await until(server.is_ready)
        balancer = Balancer(servers, folder)
        held.callback(balancer.end)
        await until(lambda: balancer.up() == SERVERS)
        load, took = await roll(servers, balancer, args.calls, args.callers)
        listed = [entries(server) for server in servers]

    for code, count in load.failed.items():
        print(f"{count} calls failed with {code}", file=sys.stderr)
    failed, times = sum(load.failed.values()), sorted(load.times)
    # A call that failed may have stored its entries.
    wrong = sum(len(names) > len(set(names)) or not set(names) >= set(load.acknowledged) for names in listed)
    print("| | |\n|---|---|")
    print(f"| calls to three servers behind HAProxy, all restarted | {load.sent}, {load.sent / load.seconds:.0f} a second |")
    print(f"| of these failed | **{failed}** |")
    middle, late = times[len(times) // 2], times[len(times) * 99 // 100]
    print(f"| p50, p99, longest of all | {middle * 1e3:.1f}, {late * 1e3:.1f}, {times[-1] * 1e3:.1f} ms |")
    print("| SIGTERM to end, end to ready, each | " + "; ".join(f"{down:.1f} s, {up:.1f} s" for down, up in took) + " |")
    print(f"| entries acknowledged, and servers that lack one or have one twice | {len(load.acknowledged)}, **{wrong}** |")
    sys.exit(1 if failed or wrong else 0)


if __name__ == "__main__":
    asyncio.run(main())
