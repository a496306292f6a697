"""A bad neighbour, all of its attacks at once, beside a good tenant that sends a fifth of what it could alone.

First the neighbour has no key, then one of its own tenant. Every call of the good tenant must be answered OK, and
afterwards the server must hold no more descriptors, threads, memory and disk than before. Prints Markdown tables.
Usage: hostile.py [--server shipreid] [--seconds 30] [--strict], with the Python of `make python`; needs openssl and
prlimit.
"""

import argparse
import asyncio
import contextlib
import itertools
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches"))

import grpc  # noqa: E402

import attacks  # noqa: E402
from rolling import Server, chip, gallery_messages, gallery_services, messages, services, until  # noqa: E402
from soak import job_messages, sample  # noqa: E402

# Of descriptors, as `ulimit -n`: the neighbour opens more connections than that.
DESCRIPTORS = 256
SHARE = 0.2
RATE_MIN = 0.95
# A call that is not answered by then is lost; no figure depends on it.
CALL_SECONDS = 300
# Where the test as a whole gives up.
END_SECONDS = 600
GALLERY, OWN_ENTRIES = "harbour", 50
# One call in so many comes over a connection of its own.
NEW_CONNECTION_EVERY = 20
# What may be left afterwards: so many times as much as before, and a little.
LEFT_MAX = {"memory": (1.5, 64), "descriptors": (1, 8), "threads": (1, 4), "files": (1.25, 8)}
# Lines of the log that a minute of attacks may cost, beside the audit of calls.
LOG_LINES_MAX = 200


class Caller:
    """A tenant's calls over TLS."""

    def __init__(self, server, authority, key):
        self.address, self.authority, self.key = f"localhost:{server.port}", authority.read_bytes(), key

    def connected(self):
        secure = grpc.composite_channel_credentials(grpc.ssl_channel_credentials(self.authority),
                                                    grpc.access_token_call_credentials(self.key))
        return grpc.aio.secure_channel(self.address, secure, options=[("grpc.use_local_subchannel_pool", 1)])

    async def fill(self, entries):
        """Makes the gallery, with as many entries, each a vector of its own; its digest and dimension."""
        async with self.connected() as channel:
            galleries = gallery_services.GalleriesStub(channel)
            gallery = (await galleries.CreateGallery(gallery_messages.CreateGalleryRequest(name=GALLERY))).gallery
            drawn = random.Random(1)

            def items():
                for number in range(entries):
                    source = gallery_messages.ReadyEmbedding(model=gallery.model, modality=1)
                    source.embedding.values.extend(drawn.gauss(0, 1) for _ in range(gallery.dimension))
                    yield gallery_messages.EnrollRequest(gallery=GALLERY, entry_id=f"entry-{number}",
                                                         vessel_id=f"vessel-{number // 4}", embedding=source)
            async for answer in galleries.Enroll(items()):
                assert not answer.HasField("error"), answer
            return gallery

    async def exported(self):
        async with self.connected() as channel:
            request = gallery_messages.ExportGalleryRequest(gallery=GALLERY)
            return b"".join([piece.data async for piece in gallery_services.GalleriesStub(channel).ExportGallery(request)])


class Good:
    """The good tenant: embeds, matches and enrols, one after the other."""

    def __init__(self, caller, channel):
        self.caller, self.channel = caller, channel
        self.answered, self.failed, self.begun = Counter(), Counter(), itertools.count()

    async def embed(self, channel, _):
        answer = await services.ShipReIdStub(channel).Embed(messages.EmbedRequest(chips=[chip()]), timeout=CALL_SECONDS)
        assert answer.results[0].HasField("embedding"), answer.results[0].error.reason

    async def match(self, channel, _):
        query = messages.MatchQuery(tracklet=messages.Tracklet(chips=[chip()]))
        request = messages.MatchRequest(gallery=GALLERY, queries=[query], top_k=5)
        answer = await services.ShipReIdStub(channel).Match(request, timeout=CALL_SECONDS)
        assert answer.results[0].candidates, answer.results[0].error.reason

    async def enrol(self, channel, number):
        item = gallery_messages.EnrollRequest(gallery=GALLERY, entry_id=f"own-{number % OWN_ENTRIES}", chip=chip(),
                                              labels={"number": str(number)}, overwrite=True)
        answers = gallery_services.GalleriesStub(channel).Enroll(iter([item]), timeout=CALL_SECONDS)
        async for answer in answers:
            assert not answer.HasField("error"), answer.error.reason

    async def call(self):
        number = next(self.begun)
        work = [self.embed, self.match, self.enrol][number % 3]
        try:
            if number % NEW_CONNECTION_EVERY:
                await work(self.channel, number)
            else:
                async with self.caller.connected() as channel:
                    await work(channel, number)
            self.answered[work.__name__] += 1
        except grpc.aio.AioRpcError as error:
            self.failed[f"{work.__name__}: {error.code().name} {error.details()}"] += 1
        except AssertionError as error:
            self.failed[f"{work.__name__}: {error}"] += 1

    async def capacity(self, seconds):
        """Calls a second, with as many at once as keep the server busy."""
        begun = time.monotonic()
        answered = self.answered.total()

        async def caller():
            while time.monotonic() < begun + seconds:
                await self.call()
        await asyncio.gather(*(caller() for _ in range(8)))
        return (self.answered.total() - answered) / (time.monotonic() - begun)

    async def paced(self, rate, seconds):
        """Begins calls at a steady rate, whatever becomes of them; how many, and how many a second were answered."""
        begun, calls, answered = time.monotonic(), [], self.answered.total()
        for number in range(max(1, round(rate * seconds))):
            await asyncio.sleep(max(0, begun + number / rate - time.monotonic()))
            calls.append(asyncio.create_task(self.call()))
        await asyncio.gather(*calls)
        return len(calls), (self.answered.total() - answered) / (time.monotonic() - begun)


def certificate(folder):
    """Of localhost, which vouches for itself, and its key."""
    pem, key = folder / "server.pem", folder / "server.key"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
                    "1", "-keyout", key, "-out", pem, "-subj", "/CN=localhost", "-addext",
                    "subjectAltName=DNS:localhost,IP:127.0.0.1"], check=True, capture_output=True)
    return pem, key


def keys(program, folder):
    """A file with a key of each tenant, and the keys."""
    file, tokens = folder / "keys.toml", {}
    with file.open("w") as blocks:
        for tenant in ("good", "bad"):
            command = [program, "key", "new", "--id", tenant, "--tenant", tenant, "--role", "admin"]
            made = subprocess.run(command, check=True, capture_output=True, text=True)
            blocks.write(made.stdout)
            tokens[tenant] = made.stderr.strip()
    return file, tokens


def around(make):
    """What stands before and after a number in a message."""
    number = "0" * 12
    before, after = make(number).SerializeToString().split(number.encode())
    return before, after


def target(server, authority, gallery, export, key):
    drawn = random.Random(2)
    search = messages.MatchRequest(gallery=GALLERY, top_k=1000)
    for _ in range(64):
        values = [drawn.gauss(0, 1) for _ in range(gallery.dimension)]
        search.queries.add(modality=1).embedding.values.extend(values)
    # Magic, version, and the first frame.
    head = 20 + 4 + int.from_bytes(export[20:24], "little")

    def update(number):
        request = gallery_messages.UpdateEntriesRequest(gallery=GALLERY)
        request.update_mask.paths.append("labels")
        request.updates.add(entry_id="entry-1", labels={number + "x" * 188: ""})
        return request
    return attacks.Target(
        port=server.port, status_port=server.metrics, authority=str(authority), key=key,
        search=search.SerializeToString(),
        export=gallery_messages.ExportGalleryRequest(gallery=GALLERY).SerializeToString(), export_head=export[:head],
        update=around(update), watch=around(lambda number: job_messages.WatchTrainingJobRequest(job_id=f"job-{number}")))


@contextlib.asynccontextmanager
async def attacked(target, tally):
    """Beside the attacks on `target`, all of them; `tally` gets what was done how often."""
    spawn = multiprocessing.get_context("spawn")
    on, stop, results = spawn.Event(), spawn.Event(), spawn.Queue()
    attacker = spawn.Process(target=attacks.run, args=(target, on, stop, results))
    attacker.start()
    try:
        while not await asyncio.to_thread(on.wait, 0.1):
            assert attacker.is_alive(), "the attacks begin"
        yield
        assert attacker.is_alive(), "the attacks went on to the end"
        stop.set()
        tally.update(await asyncio.to_thread(results.get))
    finally:
        stop.set()
        await asyncio.to_thread(attacker.join)


def is_level(before, now):
    return all(now[name] <= before[name] * factor + more for name, (factor, more) in LEFT_MAX.items())


async def run(args, folder, held):
    pem, key = certificate(folder)
    keys_file, tokens = keys(args.server, folder)
    data = folder / "data"
    server = Server(args.server, ["model.preset=tiny", f"store.data_dir={data}", f"tls.certificate={pem}", f"tls.key={key}",
                                  f"auth.keys_file={keys_file}"], folder)
    server.command = ["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}", *map(str, server.command)]
    held.callback(server.end)
    server.start()
    await until(server.is_ready)

    bad, good_caller = Caller(server, pem, tokens["bad"]), Caller(server, pem, tokens["good"])
    gallery = await bad.fill(args.entries)
    export = await bad.exported()
    await good_caller.fill(200)
    channel = await held.enter_async_context(good_caller.connected())
    good = Good(good_caller, channel)
    await good.capacity(args.seconds / 4)
    capacity = await good.capacity(args.seconds / 2)
    rate = SHARE * capacity
    sent, alone = await good.paced(rate, args.seconds / 2)
    rows = [("alone", sent, alone)]
    before, lines = await asyncio.to_thread(sample, server, data), log_lines(server)
    tallies = {"without a key": Counter(), "with a key": Counter()}
    for phase, tally in tallies.items():
        with_key = tokens["bad"] if phase == "with a key" else None
        async with attacked(target(server, pem, gallery, export, with_key), tally):
            rows.append((f"attacked {phase}", *await good.paced(rate, args.seconds)))
    lines = log_lines(server) - lines

    print(f"capacity {capacity:.0f} calls per second, of which {SHARE:.0%} are sent; {DESCRIPTORS} descriptors\n")
    print("| good tenant | calls | calls answered per second | of the rate alone |\n|---|---|---|---|")
    for what, sent, answered in rows:
        print(f"| {what} | {sent} | {answered:.1f} | {answered / alone:.3f} |")
    print(f"\n{good.answered.total()} calls answered OK, {good.failed.total()} failed; {lines} lines of the log\n")
    print("| attack | without a key | with a key |\n|---|---|---|")
    for name in tallies["with a key"]:
        print(f"| {name} | " + " | ".join(str(tally[name]) for tally in tallies.values()) + " |")
    sys.stdout.flush()
    for failure, count in good.failed.most_common():
        print(f"{count} calls failed, {failure}", file=sys.stderr)
    assert not good.failed
    slow = [what for what, _, answered in rows if answered < RATE_MIN * alone]
    assert not (args.strict and slow), slow

    print("\n| | before | after |\n|---|---|---|")
    await returned(server, data, before)
    text = Path(server.log.name).read_text()
    assert "panicked" not in text, text
    assert lines <= LOG_LINES_MAX, f"{lines} lines of the log"


async def returned(server, data, before):
    """Waits until the server holds no more than it did."""
    now = None

    async def level():
        nonlocal now
        while not is_level(before, now := await asyncio.to_thread(sample, server, data)):
            await asyncio.sleep(0.1)
    try:
        await level()
    finally:
        for name in LEFT_MAX:
            unit = " MiB" if name in ("memory", "files") else ""
            print(f"| {name} | {before[name]:.0f}{unit} | {now[name]:.0f}{unit} |")


def log_lines(server):
    return sum("audit" not in line for line in Path(server.log.name).read_text().splitlines())


async def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--server", default=ROOT / "target/release/shipreid", help="the program")
    parser.add_argument("--seconds", type=float, default=30, help="of each half of the attacks")
    parser.add_argument("--entries", type=int, default=20_000, help="of the gallery that the neighbour searches")
    parser.add_argument("--strict", action="store_true", help=f"the rate must be {RATE_MIN:.0%} of that alone, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        async with contextlib.AsyncExitStack() as held:
            await asyncio.wait_for(run(args, Path(folder), held), END_SECONDS)


if __name__ == "__main__":
    asyncio.run(main())
