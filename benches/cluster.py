"""Measures galleries in PostgreSQL beside galleries in files, in one run: rounds alternate, and ratios are medians over the
rounds.

Parts: `enrol` (beside a bare COPY of the same rows in transactions of 64), `match`, `lag` (of a second server), `start` (of a
new server), `throughput` (of one server and of two). Requests are serialized beforehand. Usage: cluster.py
[--server shipreid] [--parts enrol,match,...], with the Python of `make python` and PostgreSQL of `make operators`.
"""

import argparse
import contextlib
import itertools
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rolling import ROOT, Server

import grpc
import numpy

from contract import chips, gallery_messages, messages
from postgres import Postgres

DIMENSION = 768
GALLERY = "harbour"
DEADLINE = 120
PARTS = ["enrol", "match", "lag", "start", "throughput"]
# Calls at once and entries in each, by the number of entries in flight.
IN_FLIGHT = {1: (1, 1), 64: (4, 16), 1024: (16, 64)}
LOCAL = "READ_LOCAL"


class Callers:
    """Calls of one server with serialized requests."""

    def __init__(self, server):
        self.channel = grpc.insecure_channel(f"127.0.0.1:{server.port}", options=[("grpc.max_receive_message_length", -1)])
        call = self.channel.unary_unary
        galleries = "/shipreid.v1.Galleries/"
        self.enrol = call(f"{galleries}EnrollEntries", None, gallery_messages.EnrollEntriesResponse.FromString)
        self.get = call(f"{galleries}GetEntries", None, gallery_messages.GetEntriesResponse.FromString)
        self.create = call(f"{galleries}CreateGallery", None, gallery_messages.CreateGalleryResponse.FromString)
        self.match = call("/shipreid.v1.ShipReId/Match", None, messages.MatchResponse.FromString)

    def make(self, name):
        request = gallery_messages.CreateGalleryRequest(name=name)
        return self.create(request.SerializeToString(), timeout=DEADLINE).gallery.model


class Requests:
    """Draws serialized requests."""

    def __init__(self, model, seed=1):
        self.model, self.random, self.numbers = model, numpy.random.default_rng(seed), itertools.count()

    def vector(self):
        values = self.random.standard_normal(DIMENSION, dtype=numpy.float32)
        return chips.Embedding(values=values / numpy.linalg.norm(values))

    def enrol(self, gallery, count):
        entries = []
        for _ in range(count):
            number = next(self.numbers)
            ready = gallery_messages.ReadyEmbedding(embedding=self.vector(), model=self.model, modality=chips.MODALITY_SAR)
            ready.observation.sensor, ready.observation.scene_id = "sensor", f"scene-{number // 100}"
            ready.observation.observed_at.seconds = 1_700_000_000 + number
            ready.observation.latitude, ready.observation.longitude = number % 90, number % 180
            entries.append(gallery_messages.EnrollRequest(entry_id=f"entry-{number}", vessel_id=f"vessel-{number // 20}",
                                                          embedding=ready))
        return gallery_messages.EnrollEntriesRequest(gallery=gallery, entries=entries).SerializeToString()

    def match(self, read=None):
        query = messages.MatchQuery(embedding=self.vector(), modality=chips.MODALITY_SAR)
        return messages.MatchRequest(gallery=GALLERY, queries=[query], **reading(messages, read)).SerializeToString()

    def get(self, number, read=None):
        names = [f"entry-{number}"]
        request = gallery_messages.GetEntriesRequest(gallery=GALLERY, entry_ids=names, **reading(gallery_messages, read))
        return request.SerializeToString()


def reading(module, read):
    """The field of a request that says how fresh its answer must be."""
    return {} if read is None else {"read": getattr(messages, read)}


def has_local():
    return hasattr(messages, LOCAL)


def timed(call, requests, callers):
    """Seconds that all of them take, so many at once, and of each."""
    times, waiting, lock = [], iter(requests), threading.Lock()

    def work():
        while True:
            with lock:
                request = next(waiting, None)
            if request is None:
                return
            begun = time.perf_counter()
            answer = call(request, timeout=DEADLINE)
            times.append(time.perf_counter() - begun)
            assert not any(result.HasField("error") for result in getattr(answer, "results", [])), answer

    begun = time.perf_counter()
    with ThreadPoolExecutor(callers) as threads:
        for running in [threads.submit(work) for _ in range(callers)]:
            running.result()
    return time.perf_counter() - begun, times


def percentiles(times):
    times = sorted(times)
    return f"{times[len(times) // 2] * 1e3:.2f}, {times[min(len(times) - 1, len(times) * 99 // 100)] * 1e3:.2f} ms"


def row(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


class Bench:
    def __init__(self, args, folder, held):
        self.args, self.folder, self.held = args, folder, held
        self.database = Postgres(["shared_buffers=512MB", "max_wal_size=4GB"], parent=folder)
        held.callback(self.database.end)
        self.numbers = itertools.count()
        self.embedded = self.server()
        self.first, self.second = (self.server(self.database.url) for _ in range(2))

    def server(self, url=""):
        data = self.folder / f"data-{next(self.numbers)}"
        server = Server(self.args.server, ["model.preset=vit_base", f"store.data_dir={data}", f"store.url={url}"], self.folder)
        self.held.callback(server.end)
        self.began(server)
        server.callers = Callers(server)
        return server

    def began(self, server):
        """Seconds until it is ready."""
        begun = time.perf_counter()
        server.start()
        while not server.is_ready():
            time.sleep(0.005)
        return time.perf_counter() - begun

    def enrol(self):
        row("entries in flight", "files", "PostgreSQL", "COPY by 64", "PostgreSQL / COPY", "PostgreSQL / files")
        row(*["---"] * 6)
        for in_flight, (callers, items) in IN_FLIGHT.items():
            rates = []
            for round_number in range(self.args.rounds):
                count = max(1, self.args.entries // items // (20 if in_flight == 1 else 1))
                found = []
                for store in (self.embedded, self.first):
                    gallery = f"enrol-{in_flight}-{round_number}"
                    requests = Requests(store.callers.make(gallery))
                    prepared = [requests.enrol(gallery, items) for _ in range(count)]
                    seconds, _ = timed(store.callers.enrol, prepared, callers)
                    found.append(count * items / seconds)
                found.append(self.copy(gallery))
                rates.append(found)
            files, shared, copy = (statistics.median(rate) for rate in zip(*rates))
            to_copy, to_files = (statistics.median(rate[1] / rate[of] for rate in rates) for of in (2, 0))
            row(in_flight, *(f"{rate:,.0f}/s" for rate in (files, shared, copy)), f"**{to_copy:.2f}**", f"{to_files:.2f}")

    def copy(self, gallery):
        """Rows a second that COPY brings into tables like ours, 64 to a transaction, from files that the database reads."""
        database, folder = self.database, self.database.folder / "copy"
        folder.mkdir(exist_ok=True)
        subprocess.run(["chown", "65534:65534", folder], check=True)
        tables = {"entries": "", "vectors": ""}
        for table in tables:
            database.query(f"drop table if exists copy_{table}; create table copy_{table} (like {table} including all)")
        number = int(database.query(f"select id from galleries where name = '{gallery}'"))
        rows = int(database.query(f"select count(*) from entries where gallery = {number}"))
        out, back = [], []
        for first in range(0, rows - 63, 64):
            back.append("begin;")
            for table in tables:
                path, where = folder / f"{table}-{first}", f'gallery = {number} and "row" between {first} and {first + 63}'
                out.append(f"copy (select * from {table} where {where}) to '{path}' with (format binary);")
                back.append(f"copy copy_{table} from '{path}' with (format binary);")
            back.append("commit;")
        script = self.database.folder / "script"
        for statements in (out, back):
            script.write_text("\n".join(statements))
            begun = time.perf_counter()
            database.psql("-f", script)
            seconds = time.perf_counter() - begun
        return rows // 64 * 64 / seconds

    def fill(self, stores):
        """The same entries in every store, whichever call comes first."""
        for store in stores:
            if not hasattr(store, "requests"):
                store.requests = Requests(store.callers.make(GALLERY))
                prepared = (store.requests.enrol(GALLERY, 500) for _ in range(self.args.gallery // 500))
                timed(store.callers.enrol, prepared, 2)

    def match(self):
        self.fill([self.embedded, self.first])
        ways = {"files": (self.embedded, None), "PostgreSQL": (self.first, None)}
        if has_local():
            ways["PostgreSQL, LOCAL"] = (self.first, LOCAL)
        times = {way: [] for way in ways}
        for _ in range(self.args.matches):
            for way, (store, read) in ways.items():
                times[way] += timed(store.callers.match, [store.requests.match(read)], 1)[1]
        files = statistics.median(times["files"])
        row(f"Match, {self.args.gallery:,} entries", "p50, p99", "p50 beside files")
        row(*["---"] * 3)
        for way, found in times.items():
            middle = statistics.median(found)
            row(way, percentiles(found), f"{(middle - files) * 1e3:+.2f} ms, {middle / files:.2f}x")

    def lag(self):
        """Until a second server shows what the first has acknowledged, while entries are enrolled by 64."""
        self.fill([self.first])
        requests, read = self.first.requests, LOCAL if has_local() else None
        commits, lags, begun = [], [], time.perf_counter()
        for number in range(self.args.commits):
            prepared = requests.enrol(GALLERY, 64)
            last = next(requests.numbers) - 1
            asked = requests.get(last, read)
            commits += timed(self.first.callers.enrol, [prepared], 1)[1]
            acknowledged = time.perf_counter()
            while not self.second.callers.get(asked, timeout=DEADLINE).entries:
                pass
            lags.append(time.perf_counter() - acknowledged)
        rate = self.args.commits * 64 / (time.perf_counter() - begun)
        commit = statistics.median(commits)
        row(f"lag of a second server, {'LOCAL' if read else 'strong'} reads, {rate:,.0f} entries a second", "p50, p99")
        row("---", "---")
        row("commit of 64 entries", percentiles(commits))
        row("lag after its acknowledgement", percentiles(lags))
        late = sorted(lags)[len(lags) * 99 // 100] / commit
        row("p99 in commits", f"**{late:.1f}**")

    def start(self):
        self.fill([self.embedded, self.first])
        row(f"start with {self.args.gallery:,} entries", "seconds")
        row("---", "---")
        fresh = self.server.__func__
        begun = time.perf_counter()
        server = fresh(self, self.database.url)
        row("PostgreSQL, nothing on its disk", f"{time.perf_counter() - begun:.1f}")
        for name, again in (("PostgreSQL, with its copy", server), ("files", self.embedded)):
            again.process.terminate()
            again.process.wait()
            row(name, f"{self.began(again):.1f}")
            again.callers = Callers(again)
        server.end()

    def throughput(self):
        self.fill([self.first])
        row(f"Match, {self.args.gallery:,} entries, 8 at once", "a second")
        row("---", "---")
        for servers in ([self.first], [self.first, self.second]):
            prepared = [self.first.requests.match() for _ in range(self.args.matches)]
            turns = itertools.cycle(servers)
            seconds, _ = timed(lambda request, timeout: next(turns).callers.match(request, timeout=timeout), prepared, 8)
            row(f"servers: {len(servers)}", f"{len(prepared) / seconds:.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--server", default=ROOT / "target/release/shipreid", help="the program")
    parser.add_argument("--parts", default=",".join(PARTS), help="of these, with commas between")
    parser.add_argument("--folder", type=Path, default=ROOT / "target/bench-cluster", help="on a disk, not in memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--entries", type=int, default=6400, help="enrolled in a round")
    parser.add_argument("--gallery", type=int, default=100_000, help="entries that are searched")
    parser.add_argument("--matches", type=int, default=300)
    parser.add_argument("--commits", type=int, default=300)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(dir=args.folder)))
        folder.chmod(0o755)
        bench = Bench(args, folder, held)
        for part in args.parts.split(","):
            assert part in PARTS, f"{part} is none of {PARTS}"
            getattr(bench, part)()
            print(flush=True)


if __name__ == "__main__":
    main()
