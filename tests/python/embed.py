"""A caller that has nothing but the protos: embeds, and reads refusals. Usage: embed.py ADDRESS IMAGE_FOLDER"""

import math
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from contract import chips, messages, refused, services


def main(address, images):
    channel = grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)])
    service = services.ShipReIdStub(channel)
    optical = chips.Chip(image=(images / "0001_a_33x97_RGB.tif").read_bytes(), modality=chips.MODALITY_OPTICAL)
    sar = chips.Chip(image=(images / "0003_c_25x110_SAR.tif").read_bytes(), modality=chips.MODALITY_SAR)

    answer = service.Embed(messages.EmbedRequest(chips=[optical, sar]), timeout=60)
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

    broken = chips.Chip(image=b"no image", modality=chips.MODALITY_SAR)
    answer = service.Embed(messages.EmbedRequest(chips=[optical, broken]), timeout=60)
    assert answer.results[0].HasField("embedding")
    assert answer.results[1].error.field == "chips[1].image", answer.results[1]

    refused(service.Embed, messages.EmbedRequest(), grpc.StatusCode.INVALID_ARGUMENT, "NO_CHIPS")
    large = chips.Chip(image=bytes(65 << 20), modality=chips.MODALITY_SAR)
    refused(service.Embed, messages.EmbedRequest(chips=[large]), grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")

    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", "shipreid.v1.ShipReId"):
        status = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=60).status
        assert status == health_pb2.HealthCheckResponse.SERVING, (name, status)
    assert "shipreid.v1.ShipReId" in ProtoReflectionDescriptorDatabase(channel).get_services()
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
