"""Churns a server for half an hour and looks whether memory, descriptors, threads and files level off.

Entries come and go, vessels are merged, galleries are exported, imported and deleted, jobs train on kept chips, their
models are activated and galleries re-embedded, older ones are deleted, callers connect anew. Draws a picture; exit code 1
if something still grows in the last third, or a call failed. Usage: soak.py [--minutes 30] [--server shipreid] [--out
docs/soak.svg], with the Python of `make python`.
"""

import argparse
import asyncio
import contextlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benches"))

import grpc  # noqa: E402

from rolling import GOLDEN, Server, chips, gallery_messages, gallery_services, messages, services, until  # noqa: E402

model_messages, model_services = grpc.protos_and_services("shipreid/v1/models.proto")
job_messages, job_services = grpc.protos_and_services("shipreid/v1/training.proto")

GALLERY = "soak"
ENTRIES = 400
VESSELS = 20
DEADLINE = 60
# Calls over one connection, until it is replaced.
CALLS_PER_CONNECTION = 50
SAMPLE_SECONDS = 5
# Of the middle third, that the last may be above it; allocators keep what they had, files grow by pages.
GROWTH_MAX = {"memory": 1.05, "descriptors": 1.05, "threads": 1.05, "files": 1.10}

CONFIG = """
objective = "fine_tune"
data = { loader_threads = 0 }
model = { preset = "tiny", size_token = true, drop_path = 0.0 }
start = { from = "scratch" }
batch = { images = 8, images_per_identity = 2 }
optimizer = { kind = "sgd", momentum = 0.9, weight_decay = 1e-4 }
schedule = { base_rate = 1e-3, warm_up_epochs = 1, epochs = 2 }
checkpoint = { epochs = 1, keep = 2 }
"""


class Churn:
    """Callers of one server; each method is one kind of them, and runs until the time is over."""

    def __init__(self, server, seconds):
        self.server, self.end = server, time.monotonic() + seconds
        self.calls, self.failed = Counter(), Counter()
        self.random = random.Random(1)
        images = sorted((GOLDEN / "images").glob("*_RGB.tif")) + sorted((GOLDEN / "images").glob("*_SAR.tif"))
        self.images = [(path.read_bytes(), chips.MODALITY_SAR if "SAR" in path.name else chips.MODALITY_OPTICAL)
                       for path in images]

    def is_over(self):
        return time.monotonic() >= self.end

    def chip(self):
        image, modality = self.random.choice(self.images)
        return chips.Chip(image=image, modality=modality)

    @contextlib.asynccontextmanager
    async def connected(self):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.server.port}") as channel:
            yield channel

    async def repeatedly(self, kind, work, pause):
        """Does `work` over connections that are replaced, `pause` seconds apart."""
        while not self.is_over():
            async with self.connected() as channel:
                for _ in range(CALLS_PER_CONNECTION):
                    if self.is_over():
                        return
                    try:
                        await work(channel)
                        self.calls[kind] += 1
                    except grpc.aio.AioRpcError as error:
                        self.failed[f"{kind}: {error.code().name} {error.details()}"] += 1
                    await asyncio.sleep(pause)

    async def embed(self, channel):
        request = messages.EmbedRequest(chips=[self.chip(), self.chip()])
        answer = await services.ShipReIdStub(channel).Embed(request, timeout=DEADLINE)
        assert all(result.HasField("embedding") for result in answer.results), answer

    async def match(self, channel):
        query = messages.MatchQuery(tracklet=messages.Tracklet(chips=[self.chip()]))
        request = messages.MatchRequest(gallery=GALLERY, queries=[query], top_k=5)
        answer = await services.ShipReIdStub(channel).Match(request, timeout=DEADLINE)
        assert not answer.results[0].HasField("error"), answer

    def vessel(self):
        return f"vessel-{self.random.randrange(VESSELS)}"

    async def change(self, channel):
        """Replaces some entries, tells more of others, merges two vessels and parts them again."""
        galleries = gallery_services.GalleriesStub(channel)
        ids = [f"entry-{self.random.randrange(ENTRIES)}" for _ in range(4)]
        remove = gallery_messages.DeleteEntriesRequest(gallery=GALLERY, ids=gallery_messages.EntryIds(entry_ids=ids))
        await galleries.DeleteEntries(remove, timeout=DEADLINE)
        items = [gallery_messages.EnrollRequest(gallery=GALLERY, entry_id=name, vessel_id=self.vessel(), chip=self.chip(),
                                                labels={"drawn": str(self.random.random())}, overwrite=True) for name in ids]
        async for answer in galleries.Enroll(iter(items), timeout=DEADLINE):
            assert not answer.HasField("error"), answer
        update = gallery_messages.UpdateEntriesRequest(gallery=GALLERY)
        update.update_mask.paths.append("labels")
        update.updates.add(entry_id=ids[0], labels={f"told-{self.random.randrange(10**9)}": "x" * 100})
        await galleries.UpdateEntries(update, timeout=DEADLINE)
        merge = gallery_messages.MergeVesselsRequest(gallery=GALLERY, vessel_ids=[self.vessel()], into=self.vessel())
        await galleries.MergeVessels(merge, timeout=DEADLINE)

    async def copy(self, channel):
        """Exports the gallery, imports it under another name, and deletes that."""
        galleries = gallery_services.GalleriesStub(channel)
        request = gallery_messages.ExportGalleryRequest(gallery=GALLERY, with_chips=True)
        pieces = [piece.data async for piece in galleries.ExportGallery(request, timeout=DEADLINE)]
        requests = [gallery_messages.ImportGalleryRequest(name="copy"),
                    *(gallery_messages.ImportGalleryRequest(data=piece) for piece in pieces)]
        await galleries.ImportGallery(iter(requests), timeout=DEADLINE)
        await galleries.DeleteGallery(gallery_messages.DeleteGalleryRequest(name="copy"), timeout=DEADLINE)

    async def train(self, channel):
        """Trains on what the gallery has kept, activates the model, waits for the gallery, deletes what came before."""
        request = job_messages.TrainRequest(config_toml=f"seed = {self.random.randrange(10**6)}\n{CONFIG}", gallery=GALLERY)
        job = None
        async for event in services.ShipReIdStub(channel).Train(request, timeout=600):
            if event.WhichOneof("event") == "job":
                job = event.job
        assert job.state == job_messages.JOB_STATE_FINISHED, job
        models = model_services.ModelsStub(channel)
        await models.ActivateModel(model_messages.ActivateModelRequest(digest=job.model), timeout=DEADLINE)
        get = gallery_messages.GetGalleryRequest(name=GALLERY)
        while not self.is_over():
            gallery = (await gallery_services.GalleriesStub(channel).GetGallery(get, timeout=DEADLINE)).gallery
            if gallery.model == job.model:
                break
            await asyncio.sleep(1)
        listed = await models.ListModels(model_messages.ListModelsRequest(page_size=100), timeout=DEADLINE)
        for model in listed.models:
            if model.digest != job.model and model.stored_bytes and not model.active:
                try:
                    await models.DeleteModel(model_messages.DeleteModelRequest(digest=model.digest), timeout=DEADLINE)
                except grpc.aio.AioRpcError as error:
                    # A call may still be on it; the next round takes it.
                    if error.code() != grpc.StatusCode.FAILED_PRECONDITION:
                        raise
        delete = job_messages.DeleteTrainingJobRequest(job_id=job.job_id)
        await job_services.TrainingJobsStub(channel).DeleteTrainingJob(delete, timeout=DEADLINE)

    async def fill(self):
        async with self.connected() as channel:
            galleries = gallery_services.GalleriesStub(channel)
            await galleries.CreateGallery(gallery_messages.CreateGalleryRequest(name=GALLERY), timeout=DEADLINE)
            items = [gallery_messages.EnrollRequest(gallery=GALLERY, entry_id=f"entry-{number}", vessel_id=self.vessel(),
                                                    chip=self.chip()) for number in range(ENTRIES)]
            async for answer in galleries.Enroll(iter(items), timeout=DEADLINE * 10):
                assert not answer.HasField("error"), answer


def sample(server, folder):
    """What the process and its files take, in MiB where it is bytes."""
    process = Path(f"/proc/{server.process.pid}")
    rollup = dict(line.split(":", 1) for line in (process / "smaps_rollup").read_text().splitlines()[1:])
    files = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                files += path.stat().st_blocks * 512
    return {
        "memory": int(rollup["Pss"].split()[0]) / 1024,
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": len(list((process / "task").iterdir())),
        "files": files / 2**20,
    }


async def watch(server, folder, churn):
    begun, samples = time.monotonic(), []
    while not churn.is_over():
        samples.append((time.monotonic() - begun, await asyncio.to_thread(sample, server, folder)))
        await asyncio.sleep(SAMPLE_SECONDS)
    return samples


def growth(samples):
    """By name, the median of the last third over that of the middle one."""
    third = len(samples) // 3
    middle = lambda part, name: statistics.median(sample[name] for _, sample in part)  # noqa: E731
    return {name: middle(samples[-third:], name) / middle(samples[third:-third], name) for name in GROWTH_MAX}


def picture(samples, title):
    """The samples as SVG, a panel each."""
    width, height, left, gap = 720, 110, 60, 34
    panels, end = [], samples[-1][0]
    for row, (name, unit) in enumerate([("memory", "MiB"), ("descriptors", ""), ("threads", ""), ("files", "MiB")]):
        top = 40 + row * (height + gap)
        peak = max(sample[name] for _, sample in samples) * 1.1 or 1
        points = " ".join(f"{left + when / end * (width - left - 10):.1f},{top + height * (1 - sample[name] / peak):.1f}"
                          for when, sample in samples)
        panels.append(
            f'<rect x="{left}" y="{top}" width="{width - left - 10}" height="{height}" fill="none" stroke="#ccc"/>'
            f'<polyline points="{points}" fill="none" stroke="#1f6feb" stroke-width="1.5"/>'
            f'<text x="{left}" y="{top - 6}">{name}{f", {unit}" if unit else ""}</text>'
            f'<text x="{left - 6}" y="{top + 8}" text-anchor="end">{peak:.0f}</text>'
            f'<text x="{left - 6}" y="{top + height}" text-anchor="end">0</text>')
    total = 40 + 4 * (height + gap)
    minutes = f'<text x="{width - 10}" y="{total - 14}" text-anchor="end">{end / 60:.0f} minutes</text>'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{total}" font-family="sans-serif" '
            f'font-size="12"><rect width="100%" height="100%" fill="#fff"/><text x="{left}" y="18">{title}</text>'
            f'{"".join(panels)}{minutes}</svg>\n')


async def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--server", default=ROOT / "target/release/shipreid", help="the program")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--out", default=ROOT / "docs/soak.svg", help="where the picture is written")
    args = parser.parse_args()
    with contextlib.ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        data = folder / "data"
        settings = ["model.preset=tiny", f"store.data_dir={data}", "encoder.workers=1", "training.threads=1"]
        server = Server(args.server, settings, folder)
        held.callback(server.end)
        server.start()
        await until(server.is_ready)
        churn = Churn(server, args.minutes * 60)
        await churn.fill()
        watching = asyncio.create_task(watch(server, data, churn))
        kinds = [("embed", churn.embed, 0.5), ("match", churn.match, 0.3), ("change", churn.change, 0.3),
                 ("copy", churn.copy, 5), ("train", churn.train, 20)]
        await asyncio.gather(*(churn.repeatedly(*kind) for kind in kinds))
        samples = await watching
        ended = await server.restart()
    for failure, count in churn.failed.items():
        print(f"{count} calls failed, {failure}", file=sys.stderr)
    cpu = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    cpu = next((line.split(":")[1].strip() for line in cpu.splitlines() if line.startswith("Model name")), "")
    print(f"{args.minutes:.0f} minutes, {cpu}: " + ", ".join(f"{count} {kind}" for kind, count in churn.calls.items())
          + f"; {sum(churn.failed.values())} failed; end and start again {ended[0]:.1f} s, {ended[1]:.1f} s\n")
    print("| | first | middle third | last third | last over middle |\n|---|---|---|---|---|")
    grown = growth(samples)
    third = len(samples) // 3
    for name, ratio in grown.items():
        parts = [samples[0][1][name]] + [statistics.median(sample[name] for _, sample in part)
                                         for part in (samples[third:-third], samples[-third:])]
        print(f"| {name} | " + " | ".join(f"{value:.0f}" for value in parts) + f" | {ratio:.3f} |")
    Path(args.out).write_text(picture(samples, f"{args.minutes:.0f} minutes of churn"))
    is_level = all(ratio <= GROWTH_MAX[name] for name, ratio in grown.items())
    sys.exit(0 if is_level and not churn.failed else 1)


if __name__ == "__main__":
    asyncio.run(main())
