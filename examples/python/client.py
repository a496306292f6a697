"""A client generated from the protos: embeds, enrols, matches, reads errors.

Usage: client.py HOST:PORT [IMAGE_FOLDER] [--ca FILE]

The key, where the server wants one, is in SHIPREID_API_KEY; it is sent over TLS alone. Without a folder of images it only
asks for the active model, several times in a row, and waits when the server says so.
"""

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar, cast

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from shipreid.v1 import chip_pb2, galleries_pb2, models_pb2, shipreid_pb2, training_pb2
from shipreid.v1.galleries_pb2_grpc import GalleriesStub
from shipreid.v1.models_pb2_grpc import ModelsStub
from shipreid.v1.shipreid_pb2_grpc import ShipReIdStub

T = TypeVar("T")
GALLERY = "example-python"
# Every call has a deadline, in seconds.
TIMEOUT = 60


# [connect]
def connect(address: str, ca: Path | None, key: str | None) -> grpc.Channel:
    """TLS where the file of an authority is given. The key goes with every call, and never over a plain connection."""
    if ca is None:
        return grpc.insecure_channel(address)
    credentials = grpc.ssl_channel_credentials(ca.read_bytes())
    if key is not None:
        credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(key))
    return grpc.secure_channel(address, credentials)
# [/connect]


# [error]
@dataclass
class Refusal:
    """What a server says beside the status code."""

    code: grpc.StatusCode
    # Stable, one of docs/reasons.md. Empty: the error is not the server's, as where nothing listens.
    reason: str = ""
    # By the path of the field at fault, what is wrong with it.
    fields: dict[str, str] = field(default_factory=dict[str, str])
    # Seconds after which trying again can help.
    retry_after: float | None = None


def read_error(error: grpc.RpcError) -> Refusal:
    assert isinstance(error, grpc.Call)
    refusal = Refusal(error.code())
    # types-grpcio-status leaves out what it answers.
    status = cast(Status | None, rpc_status.from_call(error))  # pyright: ignore[reportUnknownMemberType]
    info, bad_request, retry = ErrorInfo(), BadRequest(), RetryInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info):
            refusal.reason = info.reason
        elif detail.Unpack(bad_request):
            refusal.fields = {fault.field: fault.description for fault in bad_request.field_violations}
        elif detail.Unpack(retry):
            refusal.retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    return refusal
# [/error]


# [retry]
def retried(call: Callable[[], T]) -> T:
    """Makes a call again while the server says that this can help."""
    factor, end = 1.0, time.monotonic() + 120
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            refusal = read_error(error)
            delay = refusal.retry_after
            if delay is None and refusal.code == grpc.StatusCode.UNAVAILABLE:
                delay = 0.25
            if delay is None or time.monotonic() > end:
                raise
            print(f"told to wait: {refusal.reason}, {delay} s")
            time.sleep(min(delay * factor, 10) * random.uniform(0.5, 1))
            factor *= 2
# [/retry]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("images", nargs="?", type=Path)
    parser.add_argument("--ca", type=Path)
    arguments = parser.parse_args()
    with connect(arguments.address, arguments.ca, os.environ.get("SHIPREID_API_KEY")) as channel:
        dimension = asks_for_the_model(ModelsStub(channel))
        if arguments.images is not None:
            service, galleries = ShipReIdStub(channel), GalleriesStub(channel)
            chips = read_chips(arguments.images)
            embeds(service, chips[0], dimension)
            enrols(galleries, chips)
            matches(service, chips[0])
            reads_refusals(service, galleries)
            streams_both_ways(service, chips)
            leaves_streams(service, chips[0])
            exports_and_deletes(galleries)
    print("ok")


def asks_for_the_model(models: ModelsStub) -> int:
    request = models_pb2.GetModelRequest()
    answers = [retried(lambda: models.GetModel(request, timeout=TIMEOUT)) for _ in range(3)]
    check(len({answer.model.digest for answer in answers}) == 1, answers)
    return answers[0].model.dimension


def read_chips(images: Path) -> list[chip_pb2.Chip]:
    """An optical chip and one of SAR, each of one ship."""
    # [chip]
    optical = chip_pb2.Chip(
        image=(images / "0001_a_33x97_RGB.tif").read_bytes(),
        modality=chip_pb2.MODALITY_OPTICAL,
        observation=chip_pb2.Observation(
            observed_at=Timestamp(seconds=1_772_000_000), latitude=54.4, longitude=10.2),
    )
    # [/chip]
    sar = chip_pb2.Chip(image=(images / "0003_c_25x110_SAR.tif").read_bytes(), modality=chip_pb2.MODALITY_SAR)
    return [optical, sar]


def embeds(service: ShipReIdStub, chip: chip_pb2.Chip, dimension: int) -> None:
    request = shipreid_pb2.EmbedRequest(chips=[chip])
    answer, call = service.Embed.with_call(request, timeout=TIMEOUT, metadata=(("x-request-id", "example-1"),))
    check(len(answer.results[0].embedding.values) == dimension, answer)
    headers = dict(call.initial_metadata())
    check(headers["x-request-id"] == "example-1" and headers["x-shipreid-build"], headers)


def enrols(galleries: GalleriesStub, chips: list[chip_pb2.Chip]) -> None:
    # [enrol]
    galleries.CreateGallery(galleries_pb2.CreateGalleryRequest(name=GALLERY), timeout=TIMEOUT)
    optical, sar = chips
    sightings = [
        galleries_pb2.EnrollRequest(
            gallery=GALLERY, entry_id="a", vessel_id="anna", labels={"port": "Kiel"}, chip=optical),
        galleries_pb2.EnrollRequest(entry_id="b", vessel_id="berta", chip=sar),
        galleries_pb2.EnrollRequest(
            entry_id="c", chip=chip_pb2.Chip(image=b"no image", modality=chip_pb2.MODALITY_SAR)),
    ]
    # An answer for each, in order; one that cannot be stored fails alone.
    answers = list(galleries.Enroll(iter(sightings), timeout=TIMEOUT))
    outcomes = [answer.error.reason or galleries_pb2.EnrollOutcome.Name(answer.outcome) for answer in answers]
    # [/enrol]
    check(outcomes == ["ENROLL_OUTCOME_CREATED", "ENROLL_OUTCOME_CREATED", "IMAGE_FORMAT_UNKNOWN"], outcomes)
    check(answers[2].error.field == "chip.image", answers[2])


def matches(service: ShipReIdStub, chip: chip_pb2.Chip) -> None:
    # [match]
    request = shipreid_pb2.MatchRequest(
        gallery=GALLERY,
        queries=[shipreid_pb2.MatchQuery(query_id="q", tracklet=shipreid_pb2.Tracklet(chips=[chip]))],
        filter=shipreid_pb2.EntryFilter(
            time_range=shipreid_pb2.TimeRange(start=Timestamp(seconds=1_771_000_000)), exclude_vessel_ids=["berta"]),
        min_similarity=0.5,
        with_details=True,
    )
    result = service.Match(request, timeout=TIMEOUT).results[0]
    if result.HasField("error"):
        raise SystemExit(f"{result.query_id}: {result.error.reason}: {result.error.message}")
    for candidate in result.candidates:
        print(candidate.vessel_id, candidate.similarity, dict(candidate.labels), candidate.observation.latitude)
    # [/match]
    best, = result.candidates
    check((best.vessel_id, best.entry_id, best.modality) == ("anna", "a", chip_pb2.MODALITY_OPTICAL), best)
    check(best.similarity > 0.99 and best.labels["port"] == "Kiel" and best.observation.latitude == 54.4, best)

    # Of another ship, below a minimum that no other ship reaches.
    request.filter.CopyFrom(shipreid_pb2.EntryFilter(exclude_vessel_ids=["anna"]))
    request.min_similarity = 1.0
    result = service.Match(request, timeout=TIMEOUT).results[0]
    removed = [(removed.reason, removed.count) for removed in result.removed]
    check((len(result.candidates), removed, result.matched) == (0, [("MIN_SIMILARITY", 1)], 1), result)


def reads_refusals(service: ShipReIdStub, galleries: GalleriesStub) -> None:
    query = shipreid_pb2.MatchQuery(entry_id="a")
    nowhere = shipreid_pb2.MatchRequest(gallery="nowhere", queries=[query])
    found = refused(lambda: service.Match(nowhere, timeout=TIMEOUT))
    check((found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "GALLERY_NOT_FOUND"), found)

    misnamed = galleries_pb2.CreateGalleryRequest(name="../up")
    found = refused(lambda: galleries.CreateGallery(misnamed, timeout=TIMEOUT))
    check((found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "GALLERY_NAME_INVALID"), found)
    check(list(found.fields) == ["name"] and found.retry_after is None, found)

    # A stream of answers is refused where it is read.
    job = training_pb2.TrainRequest(config_toml="epochs = 5")
    found = refused(lambda: list(service.Train(job, timeout=TIMEOUT)))
    check((found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "CONFIG_MALFORMED"), found)
    check(list(found.fields) == ["config_toml"], found)


def streams_both_ways(service: ShipReIdStub, chips: list[chip_pb2.Chip]) -> None:
    # [stream]
    requests: SimpleQueue[shipreid_pb2.EmbedStreamRequest | None] = SimpleQueue()
    answers = service.EmbedStream(iter(requests.get, None), timeout=TIMEOUT)
    for number, chip in enumerate(chips):
        requests.put(shipreid_pb2.EmbedStreamRequest(chip_id=str(number), chip=chip))
        answer = next(answers)
        check(answer.chip_id == str(number) and answer.result.HasField("embedding"), answer)
    requests.put(None)
    # [/stream]
    check(list(answers) == [], "no answer without a chip")


def leaves_streams(service: ShipReIdStub, chip: chip_pb2.Chip) -> None:
    requests: SimpleQueue[shipreid_pb2.EmbedStreamRequest | None] = SimpleQueue()
    requests.put(shipreid_pb2.EmbedStreamRequest(chip=chip))
    answers = service.EmbedStream(iter(requests.get, None), timeout=TIMEOUT)
    next(answers)
    answers.cancel()
    found = refused(lambda: list(answers))
    check(found.code == grpc.StatusCode.CANCELLED, found)

    silent: Iterator[shipreid_pb2.EmbedStreamRequest] = iter(SimpleQueue[shipreid_pb2.EmbedStreamRequest]().get, None)
    found = refused(lambda: list(service.EmbedStream(silent, timeout=0.2)))
    check(found.code == grpc.StatusCode.DEADLINE_EXCEEDED, found)
    # Lets the threads end that send.
    requests.put(None)


def exports_and_deletes(galleries: GalleriesStub) -> None:
    export = galleries_pb2.ExportGalleryRequest(gallery=GALLERY, with_chips=True)
    copy = b"".join(piece.data for piece in galleries.ExportGallery(export, timeout=TIMEOUT))
    check(len(copy) > 1000, len(copy))

    entries, token = list[str](), ""
    while True:
        listing = galleries_pb2.ListEntriesRequest(gallery=GALLERY, page_size=1, page_token=token)
        page = galleries.ListEntries(listing, timeout=TIMEOUT)
        entries += [entry.entry_id for entry in page.entries]
        token = page.next_page_token
        if not token:
            break
    check(sorted(entries) == ["a", "b"], entries)
    galleries.DeleteGallery(galleries_pb2.DeleteGalleryRequest(name=GALLERY), timeout=TIMEOUT)


def refused(call: Callable[[], object]) -> Refusal:
    try:
        answer = call()
    except grpc.RpcError as error:
        return read_error(error)
    sys.exit(f"a refusal was expected, not {answer}")


def check(holds: object, found: object) -> None:
    if not holds:
        # The caller's line says what was expected.
        raise AssertionError(found)


if __name__ == "__main__":
    main()
