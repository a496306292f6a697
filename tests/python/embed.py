"""A caller that has nothing but the protos: embeds, and reads refusals. Usage: embed.py ADDRESS IMAGE_FOLDER"""

import math
import struct
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from contract import chips, messages, refused, services


def georeferenced():
    """A gray TIFF of 40 x 160 pixels with steps of 0.5 m in UTM zone 48N, written by hand."""
    width, height = 40, 160
    keys = struct.pack("<12H", 1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32648)
    scale, place = struct.pack("<3d", 0.5, 0.5, 0), struct.pack("<6d", 0, 0, 0, 500_000, 132_000, 0)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 4, 1, 8), (259, 4, 1, 1), (262, 4, 1, 1), (273, 4, 1, None),
            (277, 4, 1, 1), (278, 4, 1, height), (279, 4, 1, width * height), (33550, 12, 3, scale), (33922, 12, 6, place),
            (34735, 3, 12, keys)]
    at = 8 + 2 + 12 * len(tags) + 4
    directory, rest = b"", b""
    pixels_at = at + sum(len(value) for *_, value in tags if isinstance(value, bytes))
    for tag, kind, count, value in tags:
        if isinstance(value, bytes):
            rest, value = rest + value, at + len(rest)
        directory += struct.pack("<HHII", tag, kind, count, pixels_at if value is None else value)
    pixels = bytes((index // width + index % width) % 256 for index in range(width * height))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4) + rest + pixels


def main(address, images):
    channel = grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)])
    service = services.ShipReIdStub(channel)
    optical = chips.Chip(image=(images / "0001_a_33x97_RGB.tif").read_bytes(), modality=chips.MODALITY_OPTICAL)
    sar = chips.Chip(image=(images / "0003_c_25x110_SAR.tif").read_bytes(), modality=chips.MODALITY_SAR)

    answer, call = service.Embed.with_call(messages.EmbedRequest(chips=[optical, sar]), timeout=60)
    headers = dict(call.initial_metadata())
    assert headers["x-request-id"] and headers["x-shipreid-build"], headers
    first, second = (result.embedding.values for result in answer.results)
    assert math.isclose(sum(value * value for value in first), 1.0, abs_tol=1e-5)
    assert list(first) != list(second)
    assert len(answer.model) == 64

    stream = service.EmbedStream(
        (messages.EmbedStreamRequest(chip_id=name, chip=chip) for name, chip in [("a", optical), ("b", sar)]),
        timeout=60)
    streamed = {message.chip_id: message.result.embedding.values for message in stream}
    assert sorted(streamed) == ["a", "b"]
    assert max(abs(a - b) for a, b in zip(streamed["a"], first)) <= 2e-5

    # What is wrong with one item ends no stream.
    items = [messages.EmbedStreamRequest(chip_id="c", chip=optical, model="0" * 64),
             messages.EmbedStreamRequest(chip_id="d", chip=sar)]
    answers = list(service.EmbedStream(iter(items), timeout=60))
    assert [answer.result.error.reason for answer in answers] == ["MODEL_NOT_FOUND", ""], answers
    assert answers[1].result.HasField("embedding"), answers

    broken = chips.Chip(image=b"no image", modality=chips.MODALITY_SAR)
    answer = service.Embed(messages.EmbedRequest(chips=[optical, broken]), timeout=60)
    assert answer.results[0].HasField("embedding")
    assert answer.results[1].error.field == "chips[1].image", answer.results[1]

    open_size = chips.Chip(image=georeferenced(), modality=chips.MODALITY_OPTICAL)
    asked = chips.Chip(image=georeferenced(), modality=chips.MODALITY_OPTICAL, pixel_size_x_m=0.75, pixel_size_y_m=0.5)
    answer = service.Embed(messages.EmbedRequest(chips=[open_size, asked]), timeout=60)
    found = [{warning.code for warning in result.warnings} for result in answer.results]
    assert "PIXEL_SIZE_FROM_FILE" in found[0] and "PIXEL_SIZE_CONTRADICTS" not in found[0], found
    assert "PIXEL_SIZE_CONTRADICTS" in found[1] and "PIXEL_SIZE_FROM_FILE" not in found[1], found

    refused(service.Embed, messages.EmbedRequest(), grpc.StatusCode.INVALID_ARGUMENT, "NO_CHIPS")
    large = chips.Chip(image=bytes(65 << 20), modality=chips.MODALITY_SAR)
    refused(service.Embed, messages.EmbedRequest(chips=[large]), grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")

    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", "shipreid.v1.ShipReId"):
        status = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=60).status
        assert status == health_pb2.HealthCheckResponse.SERVING, (name, status)
    watched = health.Watch(health_pb2.HealthCheckRequest(service="nobody"), timeout=60)
    assert next(watched).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watched.cancel()
    assert "shipreid.v1.ShipReId" in ProtoReflectionDescriptorDatabase(channel).get_services()
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
