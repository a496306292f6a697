"""A caller that has nothing but the protos: with every role on every method, with wrong keys and certificates, and while
keys and certificates are exchanged under its hands.

Usage: auth.py FOLDER IMAGE_FOLDER tls=PORT mutual=PORT expired=PORT plain=PORT

Every server reads FOLDER/keys.toml; `tls` presents FOLDER/server.pem. FOLDER/tokens.json has the tokens of the keys.
"""

import json
import os
import ssl
import sys
import threading
from pathlib import Path

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from contract import TIMEOUT, chips, messages, services

Code = grpc.StatusCode
EMBED, MATCH, ENROL, TRAIN, ADMIN = "embed", "match", "enrol", "train", "admin"
EVERY = {EMBED, MATCH, ENROL, TRAIN, ADMIN}
# By each worker, before the next certificate.
CALLS_BETWEEN = 10
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"

# Who may call what, beside admins.
ALLOWED = {
    "ShipReId": {"Embed": {EMBED}, "EmbedStream": {EMBED}, "Match": {MATCH}, "Train": {TRAIN}},
    "Galleries": {
        "CreateGallery": {ENROL}, "GetGallery": {MATCH, ENROL}, "ListGalleries": {MATCH, ENROL}, "DeleteGallery": set(),
        "Enroll": {ENROL}, "EnrollEntries": {ENROL}, "GetEntries": {MATCH, ENROL}, "ListEntries": {MATCH, ENROL},
        "GetChipPreview": {MATCH, ENROL}, "ListVessels": {MATCH, ENROL}, "DeleteEntries": {ENROL},
        "UpdateEntries": {ENROL}, "MergeVessels": {ENROL}, "ExportGallery": {ENROL}, "ImportGallery": {ENROL},
        "ImportUploadedGallery": {ENROL},
    },
    "Models": {
        "ListModels": EVERY, "GetModel": EVERY, "ImportModel": set(), "ExportModel": set(), "ActivateModel": set(),
        "DeleteModel": set(), "ImportUploadedModel": set(),
    },
    "TrainingJobs": {
        "GetTrainingJob": {TRAIN}, "ListTrainingJobs": {TRAIN}, "WatchTrainingJob": {TRAIN}, "CancelTrainingJob": {TRAIN},
        "ResumeTrainingJob": {TRAIN}, "DeleteTrainingJob": {TRAIN},
    },
    "Uploads": {
        "CreateUpload": {ENROL}, "AppendToUpload": {ENROL}, "GetUpload": {ENROL}, "ListUploads": {ENROL},
        "DeleteUpload": {ENROL},
    },
}


def main(folder, images, ports):
    world = World(folder, images, ports)
    every_role_on_every_method(world)
    keys_that_open_nothing(world)
    health_is_open_and_the_rest_is_not(world)
    certificates_that_are_not_trusted(world)
    plain_and_encrypted_do_not_mix(world)
    keys_come_and_go(world)
    certificates_are_exchanged_under_load(world)
    print("ok")


class World:
    """The servers, and what the folder has for their callers."""

    def __init__(self, folder, images, ports):
        self.folder, self.ports = folder, ports
        self.tokens = json.loads((folder / "tokens.json").read_text())
        self.chip = chips.Chip(image=(images / "0001_a_33x97_RGB.tif").read_bytes(), modality=chips.MODALITY_OPTICAL)

    def encrypted(self, server="tls", authority="authority", own=None):
        """A channel of its own connection."""
        key, certificate = (self.file(f"{own}.key"), self.file(f"{own}.pem")) if own else (None, None)
        credentials = grpc.ssl_channel_credentials(self.file(f"{authority}.pem"), key, certificate)
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.secure_channel(f"localhost:{self.ports[server]}", credentials, options)

    def file(self, name):
        return (self.folder / name).read_bytes()

    def embed(self, channel, token):
        request = messages.EmbedRequest(chips=[self.chip])
        answer = services.ShipReIdStub(channel).Embed(request, timeout=TIMEOUT, metadata=bearer(token))
        assert answer.results[0].HasField("embedding"), answer


def bearer(token):
    return [("authorization", f"Bearer {token}")] if token else None


def outcome(channel, path, metadata=None):
    """Code and reason of a call with one empty message; every kind of method is the same on the wire."""
    call = channel.stream_stream(path)(iter([b""]), timeout=TIMEOUT, metadata=metadata)
    try:
        list(call)
        return Code.OK, None
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)
        info = error_details_pb2.ErrorInfo()
        reasons = [info.reason for detail in status.details if detail.Unpack(info)] if status else []
        return error.code(), (reasons or [None])[0]


def methods():
    """Every method of the contract."""
    for proto in ("shipreid", "galleries", "models", "training", "uploads"):
        for service in grpc.protos(f"shipreid/v1/{proto}.proto").DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield service.name, method.name, f"/{service.full_name}/{method.name}"


def every_role_on_every_method(world):
    assert {(service, method) for service, method, _ in methods()} == {
        (service, method) for service, of_service in ALLOWED.items() for method in of_service}
    channel = world.encrypted()
    checked = 0
    for service, method, path in methods():
        for role in sorted(EVERY):
            code, reason = outcome(channel, path, bearer(world.tokens[role]))
            if role == ADMIN or role in ALLOWED[service][method]:
                assert code not in (Code.PERMISSION_DENIED, Code.UNAUTHENTICATED), (path, role, code, reason)
            else:
                assert (code, reason) == (Code.PERMISSION_DENIED, "ROLE_MISSING"), (path, role, code, reason)
            checked += 1
    assert checked == 38 * 5, checked


def keys_that_open_nothing(world):
    channel = world.encrypted()
    right = world.tokens[EMBED]
    for metadata, reason in [
        (None, "KEY_MISSING"),
        ([("authorization", "Basic dXNlcjpwYXNz")], "KEY_MISSING"),
        (bearer("nonsense"), "KEY_INVALID"),
        (bearer(right[:-1]), "KEY_INVALID"),
        (bearer(right.replace("embed", "admin")), "KEY_INVALID"),
        (bearer(world.tokens["expired"]), "KEY_EXPIRED"),
    ]:
        for *_, path in methods():
            assert outcome(channel, path, metadata) == (Code.UNAUTHENTICATED, reason), (path, metadata, reason)


def health_is_open_and_the_rest_is_not(world):
    channel = world.encrypted()
    health = health_pb2_grpc.HealthStub(channel)
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT).status == health_pb2.HealthCheckResponse.SERVING
    watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    for path in (REFLECTION, "/shipreid.v1.ShipReId/Sink", "/nobody/knows"):
        assert outcome(channel, path) == (Code.UNAUTHENTICATED, "KEY_MISSING"), path
    key = bearer(world.tokens[MATCH])
    assert outcome(channel, REFLECTION, key)[0] != Code.UNAUTHENTICATED
    assert outcome(channel, "/shipreid.v1.ShipReId/Sink", key)[0] == Code.UNIMPLEMENTED


def unreachable(world, channel):
    try:
        world.embed(channel, world.tokens[EMBED])
    except grpc.RpcError as error:
        assert error.code() == Code.UNAVAILABLE, error
    else:
        raise AssertionError("a connection that should not be")


def certificates_that_are_not_trusted(world):
    world.embed(world.encrypted("mutual", own="caller"), world.tokens[EMBED])
    for server, authority, own in [
        ("tls", "stranger", None),
        ("expired", "authority", None),
        ("mutual", "authority", None),
        ("mutual", "authority", "late"),
        ("mutual", "authority", "outsider"),
    ]:
        unreachable(world, world.encrypted(server, authority, own))


def plain_and_encrypted_do_not_mix(world):
    unreachable(world, grpc.insecure_channel(f"localhost:{world.ports['tls']}"))
    unreachable(world, world.encrypted("plain"))
    world.embed(grpc.insecure_channel(f"localhost:{world.ports['plain']}"), world.tokens[EMBED])


def keys_come_and_go(world):
    """A key is taken out of the file, and put in again, while another goes on."""
    path = world.folder / "keys.toml"
    blocks = path.read_text().split("\n\n")
    channel, token = world.encrypted(), world.tokens["revoked"]
    embed = "/shipreid.v1.ShipReId/Embed"
    assert outcome(channel, embed, bearer(token))[0] == Code.INVALID_ARGUMENT
    replace(path, "\n\n".join(block for block in blocks if '"revoked"' not in block).encode())
    while outcome(channel, embed, bearer(token)) != (Code.UNAUTHENTICATED, "KEY_INVALID"):
        world.embed(channel, world.tokens[EMBED])
    replace(path, "\n\n".join(blocks).encode())
    while outcome(channel, embed, bearer(token))[0] != Code.INVALID_ARGUMENT:
        world.embed(channel, world.tokens[EMBED])


def certificates_are_exchanged_under_load(world):
    """Calls on one connection, and calls that each make their own, go on while the certificate is exchanged."""
    done, failures, calls = threading.Event(), [], [0, 0]

    def call(worker, channel_of_call):
        while not done.is_set():
            try:
                world.embed(channel_of_call(), world.tokens[EMBED])
                calls[worker] += 1
            except grpc.RpcError as error:
                failures.append(error)
                return

    def own_connection():
        return world.encrypted()

    kept = world.encrypted()
    workers = [threading.Thread(target=call, args=(0, lambda: kept)), threading.Thread(target=call, args=(1, own_connection))]
    for worker in workers:
        worker.start()
    for name in ("second", "third", "second", "third"):
        expected = ssl.PEM_cert_to_DER_cert(world.file(f"{name}.pem").decode())
        # Between the two the files are no pair, which the server must survive.
        replace(world.folder / "server.key", world.file(f"{name}.key"))
        replace(world.folder / "server.pem", world.file(f"{name}.pem"))
        while presented(world) != expected:
            assert not failures, failures
        begun = list(calls)
        while not failures and any(now < then + CALLS_BETWEEN for now, then in zip(calls, begun)):
            presented(world)
    done.set()
    for worker in workers:
        worker.join()
    assert not failures, failures


def presented(world):
    """The certificate that the server shows to a new connection."""
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("localhost", int(world.ports["tls"]))))


def replace(path, content):
    """As orchestrators do: nobody reads half of it."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    os.replace(new, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), dict(argument.split("=") for argument in sys.argv[3:]))
