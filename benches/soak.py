"""Churns a server for half an hour and looks whether memory, descriptors, threads and files level off.

Entries come and go, vessels are merged, galleries are exported, imported and deleted, jobs train on kept chips, their
models are activated and galleries re-embedded, older ones are deleted, callers connect anew. Draws a picture; exit code 1
if something still grows in the last third, or a call failed. Usage: soak.py [--minutes 30] [--server shipreid] [--out
docs/soak.svg], with the Python of `make python`.

Memory is the server's anonymous memory: what it has mapped of libtorch's files is shared with its training processes, and
its part of these comes and goes with them.
"""

import argparse
import asyncio
import contextlib
import os
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
PANELS = {"memory": "anonymous memory, MiB", "descriptors": "open descriptors", "threads": "threads",
          "files": "files in the data folder, MiB"}
# What a call of each kind was, in the lines of the picture.
KINDS = [[("embed", "embed 2 chips"), ("match", "match a chip"), ("copy", "export, import, delete a gallery")],
         [("change", "delete and enrol 4 entries, update, merge vessels")],
         [("train", "train a model, activate it, re-embed the gallery, delete the former model")]]

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
        if self.random.random() < 0.5:
            answers = [answer async for answer in galleries.Enroll(iter(items), timeout=DEADLINE)]
        else:
            request = gallery_messages.EnrollEntriesRequest(gallery=GALLERY, entries=items)
            answers = (await galleries.EnrollEntries(request, timeout=DEADLINE)).results
        assert len(answers) == len(ids) and not any(answer.HasField("error") for answer in answers), answers
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
    # Folders of jobs and galleries go while they are looked at, which `walk` passes over.
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                files += os.stat(os.path.join(place, name)).st_blocks * 512
    return {
        "memory": int(rollup["Anonymous"].split()[0]) / 1024,
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


def thirds(samples):
    """By name, the medians of the middle third and of the last."""
    third = len(samples) // 3
    median = lambda part, name: statistics.median(sample[name] for _, sample in part)  # noqa: E731
    return {name: (median(samples[third:-third], name), median(samples[-third:], name)) for name in GROWTH_MAX}


def text(x, y, words, anchor="start", colour="#333"):
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'


def line(x1, y1, x2, y2, style):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'


def picture(samples, heading, calls):
    """The samples as SVG: a panel each, with the medians of the middle and the last third."""
    width, height, left, right, gap, head = 760, 110, 56, 16, 40, 110
    end, medians = samples[-1][0], thirds(samples)
    at = lambda when: left + when / end * (width - left - right)  # noqa: E731
    drawn = [f'<text x="{left}" y="22" font-size="15" font-weight="bold">{heading}</text>']
    drawn += [text(left, 42 + 17 * number, words) for number, words in enumerate(calls)]
    for row, (name, what) in enumerate(PANELS.items()):
        top, peak = head + row * (height + gap), max(sample[name] for _, sample in samples) * 1.15 or 1
        level = lambda value: top + height * (1 - value / peak)  # noqa: E731, B023
        points = " ".join(f"{at(when):.1f},{level(sample[name]):.1f}" for when, sample in samples)
        drawn += [f'<rect x="{left}" y="{top}" width="{width - left - right}" height="{height}" fill="none" stroke="#bbb"/>',
                  text(left, top - 6, what), text(left - 6, top + 10, f"{peak:.0f}", "end"),
                  text(left - 6, top + height, "0", "end"),
                  f'<polyline points="{points}" fill="none" stroke="#1f6feb" stroke-width="1.3"/>']
        for third, median in enumerate(medians[name], 1):
            begin, over = at(end * third / 3), at(end * (third + 1) / 3)
            drawn += [line(begin, top, begin, top + height, 'stroke="#bbb" stroke-dasharray="2 3"'),
                      line(begin, level(median), over, level(median), 'stroke="#d1242f" stroke-width="1.3"'),
                      text(over - 6, top + height - 6, f"median {median:.0f}", "end", "#d1242f")]
    bottom = head + len(PANELS) * (height + gap) - gap + 16
    drawn += [text(at(end * step / 6), bottom, f"{end * step / 360:.0f}", "middle") for step in range(7)]
    drawn.append(text(width / 2, bottom + 18, "minutes", "middle"))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom + 30}" font-family="sans-serif" '
            f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>{"".join(drawn)}</svg>\n')


def processor():
    found = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    name = next((line.split(":")[1].strip() for line in found.splitlines() if line.startswith("Model name")), "a processor")
    return f"{name}, {os.cpu_count()} cores"


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
        kinds = [("embed", churn.embed, 0.5), ("match", churn.match, 0.3), ("change", churn.change, 0.3),
                 ("copy", churn.copy, 5), ("train", churn.train, 20)]
        samples, *_ = await asyncio.gather(watch(server, data, churn), *(churn.repeatedly(*kind) for kind in kinds))
        ended = await server.restart()
    for failure, count in churn.failed.items():
        print(f"{count} calls failed, {failure}", file=sys.stderr)
    heading = f"{args.minutes:.0f} minutes of churn on one server, {processor()}"
    calls = [", ".join(f"{churn.calls[kind]:,} × {what}" for kind, what in kinds) for kinds in KINDS]
    print(f"{heading}: {', '.join(calls)}; {sum(churn.failed.values())} failed; "
          f"end and start again {ended[0]:.1f} s, {ended[1]:.1f} s\n")
    print("| | first | middle third | last third | last over middle | at most |\n|---|---|---|---|---|---|")
    is_level = True
    for name, (middle, last) in thirds(samples).items():
        is_level &= last <= middle * GROWTH_MAX[name]
        print(f"| {PANELS[name]} | {samples[0][1][name]:.0f} | {middle:.0f} | {last:.0f} | {last / middle:.3f} "
              f"| {GROWTH_MAX[name]:.2f} |")
    Path(args.out).write_text(picture(samples, heading, calls))
    sys.exit(0 if is_level and not churn.failed else 1)


if __name__ == "__main__":
    asyncio.run(main())
