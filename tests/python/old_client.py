"""A caller whose code was generated from the contract of the first release, and who has not been told of a newer one.

tests/fixtures/contract-1.binpb describes that contract. One name has changed since: TimeRange.start and TimeRange.end were
`from` and `to`, which Python could not write. Source code has to follow when it is generated anew; callers that were built
before do not, since the numbers stayed, and what is sent are numbers.

Usage: old_client.py ADDRESS IMAGE_FOLDER
"""

import sys
from pathlib import Path

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.rpc import error_details_pb2
from grpc_status import rpc_status

TIMEOUT = 60
GALLERY = "old"
HOUR = 3600
SOME_DAY = 1_700_000_000
CONTRACT = Path(__file__).parents[1] / "fixtures/contract-1.binpb"


class Contract:
    """Messages and methods by name, from recorded descriptors."""

    def __init__(self, recorded, channel):
        self.pool, self.channel = descriptor_pool.DescriptorPool(), channel
        for file in descriptor_pb2.FileDescriptorSet.FromString(recorded).file:
            self.pool.Add(file)

    def message(self, name, /, **fields):
        descriptor = self.pool.FindMessageTypeByName(f"shipreid.v1.{name}")
        return message_factory.GetMessageClass(descriptor)(**fields)

    def value(self, name):
        """The number of a value of an enumeration; values are named within the package."""
        enumeration, _, _ = name.rpartition("_")
        camel = "".join(word.capitalize() for word in enumeration.split("_"))
        return self.pool.FindEnumTypeByName(f"shipreid.v1.{camel}").values_by_name[name].number

    def call(self, name, request):
        """The answer, or the list of answers, of a method; `request` is a list where requests are a stream."""
        method = self.pool.FindMethodByName(f"shipreid.v1.{name}")
        service, _, rpc = name.rpartition(".")
        shape = ["unary", "stream"]
        kind = f"{shape[method.client_streaming]}_{shape[method.server_streaming]}"
        answer = message_factory.GetMessageClass(method.output_type)
        send = getattr(self.channel, kind)(
            f"/shipreid.v1.{service}/{rpc}", lambda message: message.SerializeToString(), answer.FromString)
        answered = send(iter(request) if method.client_streaming else request, timeout=TIMEOUT)
        return list(answered) if method.server_streaming else answered

    def refused(self, name, request):
        """Code, reason and fields at fault of a call that must be refused."""
        try:
            answer = self.call(name, request)
        except grpc.RpcError as error:
            info, faults = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            for detail in rpc_status.from_call(error).details:
                _ = detail.Unpack(info) or detail.Unpack(faults)
            return error.code(), info.reason, [fault.field for fault in faults.field_violations]
        raise AssertionError(f"a refusal expected, not {answer}")


def main(address, images):
    with grpc.insecure_channel(address) as channel:
        contract = Contract(CONTRACT.read_bytes(), channel)
        names = [field.name for field in contract.message("TimeRange").DESCRIPTOR.fields]
        assert names == ["from", "to"], "the record is of a contract before the names changed"
        optical = contract.message("Chip", image=(images / "0001_a_33x97_RGB.tif").read_bytes(),
                                   modality=contract.value("MODALITY_OPTICAL"))
        sar = contract.message("Chip", image=(images / "0003_c_25x110_SAR.tif").read_bytes(),
                               modality=contract.value("MODALITY_SAR"))
        model = embeds(contract, optical, sar)
        enrols(contract, optical, sar)
        matches_within_a_time_range(contract, optical, model)
        lists(contract)
        is_refused(contract)
        contract.call("Galleries.DeleteGallery", contract.message("DeleteGalleryRequest", name=GALLERY))
    print("ok")


def embeds(contract, optical, sar):
    answer = contract.call("ShipReId.Embed", contract.message("EmbedRequest", chips=[optical, sar]))
    first, second = (result.embedding.values for result in answer.results)
    assert list(first) != list(second) and len(answer.model) == 64, answer
    assert answer.timings.HasField("total"), answer
    items = [contract.message("EmbedStreamRequest", chip_id=name, chip=chip) for name, chip in [("a", optical), ("b", sar)]]
    answers = contract.call("ShipReId.EmbedStream", items)
    assert [answer.chip_id for answer in answers] == ["a", "b"], answers
    assert max(abs(a - b) for a, b in zip(answers[1].result.embedding.values, second, strict=True)) <= 2e-5
    return answer.model


def enrols(contract, optical, sar):
    gallery = contract.call("Galleries.CreateGallery", contract.message("CreateGalleryRequest", name=GALLERY)).gallery
    assert gallery.keeps_chips and gallery.name == GALLERY, gallery
    items = []
    for hour, (name, chip) in enumerate([("a", optical), ("b", sar), ("c", optical)]):
        item = contract.message("EnrollRequest", gallery=GALLERY, entry_id=name, vessel_id=f"vessel-{name}", chip=chip)
        item.chip.observation.observed_at.seconds = SOME_DAY + hour * HOUR
        items.append(item)
    broken = contract.message("EnrollRequest", entry_id="d", chip=contract.message(
        "Chip", image=b"no image", modality=contract.value("MODALITY_SAR")))
    *stored, failed = contract.call("Galleries.Enroll", [*items, broken])
    assert {answer.outcome for answer in stored} == {contract.value("ENROLL_OUTCOME_CREATED")}, stored
    assert (failed.error.reason, failed.error.field) == ("IMAGE_FORMAT_UNKNOWN", "chip.image"), failed


def between(contract, start, end):
    """A filter for entries from hour `start` until before hour `end`, in the old names."""
    entries = contract.message("EntryFilter")
    getattr(entries.time_range, "from").seconds = SOME_DAY + start * HOUR
    entries.time_range.to.seconds = SOME_DAY + end * HOUR
    return entries


def matches_within_a_time_range(contract, optical, model):
    query = contract.message("MatchQuery", query_id="q", tracklet=contract.message("Tracklet", chips=[optical]))
    for start, end, expected in [(0, 3, {"a", "b", "c"}), (0, 1, {"a"}), (1, 3, {"b", "c"}), (3, 4, set())]:
        request = contract.message("MatchRequest", gallery=GALLERY, queries=[query], filter=between(contract, start, end))
        answer = contract.call("ShipReId.Match", request)
        result, = answer.results
        found = {candidate.entry_id for candidate in result.candidates}
        assert (answer.model, result.query_id, found, result.matched) == (model, "q", expected, len(expected)), result
    request = contract.message("MatchRequest", gallery=GALLERY, queries=[query], filter=between(contract, 0, 1))
    best, = contract.call("ShipReId.Match", request).results[0].candidates
    assert best.vessel_id == "vessel-a" and best.similarity > 0.99, best


def lists(contract):
    listing = contract.message("ListEntriesRequest", gallery=GALLERY, filter=between(contract, 1, 3), page_size=1)
    page = contract.call("Galleries.ListEntries", listing)
    listing.page_token = page.next_page_token
    entries = [*page.entries, *contract.call("Galleries.ListEntries", listing).entries]
    assert sorted(entry.entry_id for entry in entries) == ["b", "c"], entries
    galleries = contract.call("Galleries.ListGalleries", contract.message("ListGalleriesRequest")).galleries
    assert [(gallery.name, gallery.entries, gallery.vessels) for gallery in galleries] == [(GALLERY, 3, 3)], galleries
    models = contract.call("Models.ListModels", contract.message("ListModelsRequest")).models
    assert [model.active for model in models] == [True], models
    jobs = contract.call("TrainingJobs.ListTrainingJobs", contract.message("ListTrainingJobsRequest")).jobs
    assert not jobs, jobs
    export = contract.call("Galleries.ExportGallery", contract.message("ExportGalleryRequest", gallery=GALLERY))
    assert sum(len(piece.data) for piece in export) > 100, export


def is_refused(contract):
    invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    inverted = contract.message("ListEntriesRequest", gallery=GALLERY, filter=between(contract, 2, 1))
    cases = [
        ("ShipReId.Embed", contract.message("EmbedRequest"), (invalid, "NO_CHIPS", ["chips"])),
        ("Galleries.ListEntries", inverted, (invalid, "TIME_RANGE_INVERTED", ["filter.time_range"])),
        ("ShipReId.Train", contract.message("TrainRequest", config_toml="epochs = 5"),
         (invalid, "CONFIG_MALFORMED", ["config_toml"])),
        ("TrainingJobs.WatchTrainingJob", contract.message("WatchTrainingJobRequest", job_id="none"),
         (invalid, "JOB_ID_MALFORMED", ["job_id"])),
        ("Galleries.GetGallery", contract.message("GetGalleryRequest", name="nowhere"), (missing, "GALLERY_NOT_FOUND", [])),
    ]
    for name, request, expected in cases:
        found = contract.refused(name, request)
        assert found == expected, (name, found)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
