"""A caller that has nothing but the protos: enrols ships, finds them again, looks at them, corrects, deletes, copies, and
reads refusals.

Usage: galleries.py ADDRESS IMAGE_FOLDER
"""

import io
import math
import sys
from pathlib import Path

import grpc
import numpy
from google.protobuf.timestamp_pb2 import Timestamp
from PIL import Image

from contract import TIMEOUT, chips, gallery_messages, gallery_services, messages, refused, services

GALLERY, COPY = "foreign", "foreign-copy"
OPTICAL, SAR = chips.MODALITY_OPTICAL, chips.MODALITY_SAR
Code = grpc.StatusCode


def main(address, images):
    channel = grpc.insecure_channel(address)
    caller = Caller(services.ShipReIdStub(channel), gallery_services.GalleriesStub(channel))
    optical = (images / "0001_a_33x97_RGB.tif").read_bytes(), OPTICAL
    sar = (images / "0003_c_25x110_SAR.tif").read_bytes(), SAR

    gallery = caller.galleries.CreateGallery(gallery_messages.CreateGalleryRequest(name=GALLERY), timeout=TIMEOUT).gallery
    enrols(caller, gallery, optical, sar)
    finds(caller, optical)
    enrols_what_was_matched(caller, gallery, optical)
    gates_by_speed(caller, optical)
    previews(caller, gallery, optical, sar)
    corrects_and_merges(caller, optical)
    copies(caller)
    refuses_bad_items(caller, gallery, optical)
    refuses_bad_queries(caller, gallery, optical)
    refuses_bad_changes(caller)
    enrols_in_batches(caller, gallery, optical)
    deletes(caller, optical)
    for name in (GALLERY, COPY):
        caller.galleries.DeleteGallery(gallery_messages.DeleteGalleryRequest(name=name), timeout=TIMEOUT)
    refused(caller.galleries.GetGallery, gallery_messages.GetGalleryRequest(name=GALLERY), Code.NOT_FOUND,
            "GALLERY_NOT_FOUND", GALLERY)
    print("ok")


class Caller:
    """Both services, asked about the one gallery."""

    def __init__(self, service, galleries):
        self.service, self.galleries = service, galleries

    def enrol(self, *items):
        """An answer for each item, while the stream of items is still being sent."""
        return list(self.galleries.Enroll(iter(items), timeout=TIMEOUT))

    def match(self, query, **options):
        """The result of one query that must succeed."""
        request = messages.MatchRequest(gallery=GALLERY, queries=[query], **options)
        answer = self.service.Match(request, timeout=TIMEOUT)
        result, = answer.results
        assert not result.HasField("error"), result
        assert answer.calibrator == "" and not result.HasField("unknown_probability"), answer
        return result

    def failed_query(self, query, **options):
        """Why one query of a call fails."""
        request = messages.MatchRequest(gallery=GALLERY, queries=[query], **options)
        result, = self.service.Match(request, timeout=TIMEOUT).results
        assert not result.candidates, result
        return result.error

    def entries(self, *ids, **options):
        request = gallery_messages.GetEntriesRequest(gallery=GALLERY, entry_ids=ids, **options)
        return self.galleries.GetEntries(request, timeout=TIMEOUT)

    def update(self, mask, *updates):
        request = gallery_messages.UpdateEntriesRequest(gallery=GALLERY, updates=updates)
        request.update_mask.paths.extend(mask)
        return self.galleries.UpdateEntries(request, timeout=TIMEOUT)


def chip(source, **observation):
    image, modality = source
    return chips.Chip(image=image, modality=modality, observation=seen(**observation))


def seen(hour=None, **observation):
    if hour is not None:
        observation["observed_at"] = Timestamp(seconds=1_700_000_000 + hour * 3600)
    return chips.Observation(**observation)


def ready(values, model, modality=OPTICAL, **observation):
    return gallery_messages.ReadyEmbedding(
        embedding=chips.Embedding(values=values), model=model, modality=modality, observation=seen(**observation))


def item(entry_id, source, vessel_id="", **fields):
    """An item of an Enroll stream; `source` is a chip or a ready embedding."""
    field = "chip" if isinstance(source, chips.Chip) else "embedding"
    return gallery_messages.EnrollRequest(
        gallery=GALLERY, entry_id=entry_id, vessel_id=vessel_id, **{field: source}, **fields)


def tracklet(source, **observation):
    return messages.MatchQuery(query_id="q", tracklet=messages.Tracklet(chips=[chip(source, **observation)]))


def enrols(caller, gallery, optical, sar):
    assert (gallery.name, gallery.entries, len(gallery.model)) == (GALLERY, 0, 64), gallery
    assert gallery.keeps_chips and gallery.read_only_reason == ""
    axis = [1.0] + [0.0] * (gallery.dimension - 1)
    items = [
        item("a", chip(optical, hour=0, latitude=54.0, longitude=10.0, scene_id="s0"), "anna", labels={"port": "Kiel"}),
        item("b", chip(sar, hour=1, latitude=54.1, longitude=10.0, scene_id="s1"), "berta"),
        item("c", ready(axis, gallery.model, SAR, hour=2)),
        item("d", ready([-value * 9 for value in axis], gallery.model), "anna"),
    ]
    answers = caller.enrol(*items)
    assert [answer.entry_id for answer in answers] == ["a", "b", "c", "d"], answers
    assert {answer.outcome for answer in answers} == {gallery_messages.ENROLL_OUTCOME_CREATED}, answers
    # Sent again after an interruption, nothing is stored twice.
    assert {answer.outcome for answer in caller.enrol(*items)} == {gallery_messages.ENROLL_OUTCOME_UNCHANGED}

    found = caller.entries("d", "x", "c", with_embeddings=True)
    assert [entry.entry_id for entry in found.entries] == ["d", "c"] and found.missing_entry_ids == ["x"], found
    assert list(found.entries[1].embedding.values) == axis
    # A ready embedding is brought to unit length.
    assert list(found.entries[0].embedding.values) == [-value for value in axis]
    gallery = caller.galleries.GetGallery(gallery_messages.GetGalleryRequest(name=GALLERY), timeout=TIMEOUT).gallery
    assert (gallery.entries, gallery.vessels) == (4, 3), gallery


def finds(caller, optical):
    result = caller.match(tracklet(optical))
    best = result.candidates[0]
    assert (best.entry_id, best.vessel_id, best.entries) == ("a", "anna", 2), result
    assert math.isclose(best.similarity, 1.0, abs_tol=1e-5)
    assert (result.query_id, result.matched, result.exact) == ("q", 4, True), result
    assert len(result.candidates) == 3, "a row for each vessel, one of them unknown"
    assert sorted((c.similarity for c in result.candidates), reverse=True) == [c.similarity for c in result.candidates]

    told = caller.match(tracklet(optical), with_details=True, min_similarity=0.99)
    candidate, = told.candidates
    assert (candidate.modality, candidate.observation.scene_id) == (OPTICAL, "s0"), candidate
    assert dict(candidate.labels) == {"port": "Kiel"}, candidate
    assert [(removed.reason, removed.count) for removed in told.removed] == [("MIN_SIMILARITY", 2)], told

    by_entry = caller.match(tracklet(optical), group_by=messages.GROUP_BY_ENTRY, top_k=3)
    assert [candidate.entries for candidate in by_entry.candidates] == [1, 1, 1]
    # The query's embedding comes back, so that asking or enrolling it again costs no forward pass.
    again = messages.MatchQuery(embedding=result.embedding, modality=OPTICAL)
    assert caller.match(again).candidates[0].entry_id == "a"
    itself = caller.match(messages.MatchQuery(entry_id="a"), group_by=messages.GROUP_BY_ENTRY)
    assert sorted(candidate.entry_id for candidate in itself.candidates) == ["b", "c", "d"], itself

    for filter, expected in [
        (messages.EntryFilter(modalities=[SAR]), "bc"),
        (messages.EntryFilter(labels={"port": "Kiel"}), "a"),
        (messages.EntryFilter(vessel_ids=["anna"]), "ad"),
        (messages.EntryFilter(entry_ids=["b", "d", "x"]), "bd"),
        (messages.EntryFilter(area=messages.Area(south=54.05, west=170, north=55, east=20)), "b"),
        (messages.EntryFilter(time_range=messages.TimeRange(start=seen(hour=1).observed_at, end=seen(hour=2).observed_at)), "b"),
        (messages.EntryFilter(modalities=[OPTICAL], vessel_ids=["berta"]), ""),
        (messages.EntryFilter(exclude_vessel_ids=["anna"]), "bc"),
        (messages.EntryFilter(exclude_labels={"port": "Kiel"}), "bcd"),
        (messages.EntryFilter(modalities=[SAR], exclude_entry_ids=["b"]), "c"),
        (messages.EntryFilter(without_vessel=True), "c"),
    ]:
        result = caller.match(tracklet(optical), group_by=messages.GROUP_BY_ENTRY, filter=filter)
        assert "".join(sorted(candidate.entry_id for candidate in result.candidates)) == expected, (filter, result)
        assert result.matched == len(expected), (filter, result)


def enrols_what_was_matched(caller, gallery, optical):
    """With the chip that was asked about, so that the gallery can follow another model."""
    result = caller.match(tracklet(optical))
    kept = gallery_messages.ReadyEmbedding(
        embedding=result.embedding, model=gallery.model, chip=chip(optical, scene_id="s9"))
    answers = caller.enrol(item("m", kept), item("m", kept))
    assert [answer.outcome for answer in answers] == [
        gallery_messages.ENROLL_OUTCOME_CREATED, gallery_messages.ENROLL_OUTCOME_UNCHANGED], answers
    entry, = caller.entries("m", with_embeddings=True).entries
    assert (entry.modality, entry.observation.scene_id) == (OPTICAL, "s9"), entry
    assert entry.embedding == result.embedding
    kept.chip.image = b"no image"
    answer, = caller.enrol(item("n", kept))
    assert (answer.error.reason, answer.error.field) == ("IMAGE_FORMAT_UNKNOWN", "embedding.chip.image"), answer
    selection = gallery_messages.EntryIds(entry_ids=["m"])
    caller.galleries.DeleteEntries(
        gallery_messages.DeleteEntriesRequest(gallery=GALLERY, ids=selection), timeout=TIMEOUT)


def gates_by_speed(caller, optical):
    # Two degrees of latitude are 120 nautical miles: 60 knots from "a" in two hours; "b" is 66 away after one.
    there = dict(hour=2, latitude=52.0, longitude=10.0, scene_id="s2")
    fast = caller.match(tracklet(optical, **there), max_speed_knots=100)
    anna = next(candidate for candidate in fast.candidates if candidate.vessel_id == "anna")
    assert 59.5 < anna.implied_speed_knots < 60.5 and not anna.gate_unchecked, anna
    slow = caller.match(tracklet(optical, **there), max_speed_knots=30)
    assert [(removed.reason, removed.count) for removed in slow.removed] == [("SPEED", 2)], slow
    candidate, = slow.candidates
    assert candidate.entry_id == "c" and candidate.gate_unchecked, slow
    # Two detections of one scene are never one vessel.
    beside = caller.match(tracklet(optical, scene_id="s0"))
    assert [(removed.reason, removed.count) for removed in beside.removed] == [("SAME_SCENE", 1)], beside


def previews(caller, gallery, optical, sar):
    """Compared with what Pillow, which the model's reference reads images with, makes of the same files."""
    preview = caller.galleries.GetChipPreview

    def of(entry_id, **options):
        return gallery_messages.GetChipPreviewRequest(gallery=GALLERY, entry_id=entry_id, **options)

    for entry_id, (image, modality), sides in [("a", optical, (33, 97)), ("b", sar, (25, 110))]:
        shown = Image.open(io.BytesIO(image))
        if modality == SAR:
            amplitudes = numpy.asarray(shown, numpy.float32)
            stretched = amplitudes / amplitudes.max() * numpy.float32(255)
            shown = Image.fromarray(stretched.astype(numpy.uint8))
        shown = shown.convert("RGB")
        for side in (0, 50):
            answer = preview(of(entry_id, max_side_pixels=side), timeout=TIMEOUT)
            size = (round(sides[0] * side / sides[1]), side) if side else sides
            found = Image.open(io.BytesIO(answer.png))
            assert (found.format, found.mode, found.size) == ("PNG", "RGB", size), found
            assert (answer.width_pixels, answer.height_pixels, answer.modality) == (*size, modality), answer
            expected = shown if size == sides else shown.resize(size, Image.Resampling.BILINEAR)
            assert found.tobytes() == expected.tobytes(), (entry_id, side)

    refused(preview, of("x"), Code.NOT_FOUND, "ENTRY_NOT_FOUND", "x")
    refused(preview, of("c"), Code.FAILED_PRECONDITION, "ENTRY_WITHOUT_CHIP", "enrol it again")
    refused(preview, of("a", max_side_pixels=1025), Code.INVALID_ARGUMENT, "NUMBER_OUT_OF_BOUNDS", "1024")


def corrects_and_merges(caller, optical):
    update = gallery_messages.EntryUpdate(entry_id="c", vessel_id="clara", labels={"port": "Oslo"})
    missing = gallery_messages.EntryUpdate(entry_id="x", vessel_id="clara")
    answer = caller.update(["vessel_id"], update, missing)
    assert (answer.updated, list(answer.missing_entry_ids)) == (1, ["x"]), answer
    entry, = caller.entries("c").entries
    assert (entry.vessel_id, dict(entry.labels), entry.modality) == ("clara", {}, SAR), entry
    assert entry.observation.observed_at == seen(hour=2).observed_at, "what the mask does not name stays"

    listing = gallery_messages.ListVesselsRequest(gallery=GALLERY, page_size=2)
    page = caller.galleries.ListVessels(listing, timeout=TIMEOUT)
    assert [(vessel.vessel_id, vessel.entries) for vessel in page.vessels] == [("anna", 2), ("berta", 1)], page
    assert page.vessels[1].first_observed_at == seen(hour=1).observed_at == page.vessels[1].last_observed_at, page
    assert list(page.vessels[1].modalities) == [SAR], page
    listing.page_token = page.next_page_token
    page = caller.galleries.ListVessels(listing, timeout=TIMEOUT)
    assert ([vessel.vessel_id for vessel in page.vessels], page.next_page_token) == (["clara"], ""), page

    merge = gallery_messages.MergeVesselsRequest(gallery=GALLERY, vessel_ids=["berta", "clara"], into="anna")
    assert caller.galleries.MergeVessels(merge, timeout=TIMEOUT).moved_entries == 2
    candidate, = caller.match(tracklet(optical)).candidates
    assert (candidate.vessel_id, candidate.entries) == ("anna", 4), candidate


def copies(caller):
    export = gallery_messages.ExportGalleryRequest(gallery=GALLERY, with_chips=True)
    pieces = [piece.data for piece in caller.galleries.ExportGallery(export, timeout=TIMEOUT)]
    piece = gallery_messages.ImportGalleryRequest
    whole = [piece(name=COPY), *(piece(data=data) for data in pieces)]
    torn = [piece(name=COPY, data=b"".join(pieces)[:-1])]
    importing = caller.galleries.ImportGallery
    refused(importing, iter(torn), Code.INVALID_ARGUMENT, "EXPORT_TRUNCATED")
    made = importing(iter(whole), timeout=TIMEOUT).gallery
    assert (made.name, made.entries, made.vessels) == (COPY, 4, 1), made
    refused(importing, iter(whole), Code.ALREADY_EXISTS, "GALLERY_EXISTS", COPY)
    foreign = [piece(name="other", data=b"no export")]
    refused(importing, iter(foreign), Code.INVALID_ARGUMENT, "EXPORT_FOREIGN")

    listing = gallery_messages.ListEntriesRequest(gallery=GALLERY, with_embeddings=True)
    mine = caller.galleries.ListEntries(listing, timeout=TIMEOUT).entries
    listing.gallery = COPY
    assert list(caller.galleries.ListEntries(listing, timeout=TIMEOUT).entries) == list(mine)


def refuses_bad_items(caller, gallery, optical):
    axis = [1.0] + [0.0] * (gallery.dimension - 1)
    good = ready(axis, gallery.model)
    other = "0" * 64
    cases = [
        (ready(axis + [0.0], gallery.model), Code.FAILED_PRECONDITION, "DIMENSION_MISMATCH", "",
         [str(gallery.dimension), str(gallery.dimension + 1)]),
        (ready(axis, other), Code.FAILED_PRECONDITION, "MODEL_MISMATCH", "", [gallery.model, other]),
        (ready([math.nan] + axis[1:], gallery.model), Code.INVALID_ARGUMENT, "EMBEDDING_NOT_FINITE",
         "embedding.embedding.values", ["0"]),
        (ready([0.0] * len(axis), gallery.model), Code.INVALID_ARGUMENT, "EMBEDDING_ZERO",
         "embedding.embedding.values", ["zero"]),
        (ready(axis, gallery.model, latitude=91.0, longitude=0.0), Code.INVALID_ARGUMENT, "NUMBER_OUT_OF_BOUNDS",
         "embedding.observation.latitude", ["91", "90"]),
        (chip(optical, latitude=54.0), Code.INVALID_ARGUMENT, "POSITION_INCOMPLETE",
         "chip.observation.longitude", ["longitude"]),
        (chips.Chip(image=b"no image", modality=SAR), Code.INVALID_ARGUMENT, "IMAGE_FORMAT_UNKNOWN", "chip.image", []),
    ]
    # The items at fault fail alone, in the middle of one stream.
    items = [item(f"bad{number}", source) for number, (source, *_) in enumerate(cases)]
    *answers, last = caller.enrol(*items, item("e", good))
    assert last.outcome == gallery_messages.ENROLL_OUTCOME_CREATED, last
    for answer, (_, code, reason, field, says) in zip(answers, cases, strict=True):
        failed(answer.error, code, reason, field, *says)

    long = caller.enrol(item("i" * 257, good))[0]
    failed(long.error, Code.INVALID_ARGUMENT, "TEXT_TOO_LONG", "entry_id", "257", "256")
    # The same id twice in one stream: the first is stored, the second is one of three.
    flipped = ready([-value for value in axis], gallery.model)
    twice = caller.enrol(item("f", good), item("f", good), item("f", flipped), item("f", flipped, overwrite=True))
    created, unchanged, conflict, replaced = twice
    assert created.outcome == gallery_messages.ENROLL_OUTCOME_CREATED, twice
    assert unchanged.outcome == gallery_messages.ENROLL_OUTCOME_UNCHANGED, twice
    failed(conflict.error, Code.ALREADY_EXISTS, "ENTRY_EXISTS", "", "f")
    assert replaced.outcome == gallery_messages.ENROLL_OUTCOME_REPLACED, twice
    assert [*caller.entries("f", with_embeddings=True).entries[0].embedding.values][0] == -1.0

    unknown = item("a", good)
    unknown.gallery = "nowhere"
    refused(caller.galleries.Enroll, iter([unknown]), Code.NOT_FOUND, "GALLERY_NOT_FOUND", "nowhere")


def refuses_bad_queries(caller, gallery, optical):
    query = tracklet(optical)
    matching = caller.service.Match

    def whole(code, reason, *says, **options):
        request = messages.MatchRequest(**{"gallery": GALLERY, "queries": [query], **options})
        for text in says:
            refused(matching, request, code, reason, text)

    whole(Code.NOT_FOUND, "GALLERY_NOT_FOUND", "nowhere", gallery="nowhere")
    whole(Code.INVALID_ARGUMENT, "TOP_K_INVALID", "top_k is 0", top_k=0)
    whole(Code.INVALID_ARGUMENT, "TOP_K_INVALID", "4000000000", top_k=4_000_000_000)
    other = "0" * 64
    whole(Code.FAILED_PRECONDITION, "MODEL_MISMATCH", gallery.model, other, model=other)
    inverted = messages.TimeRange(start=seen(hour=2).observed_at, end=seen(hour=1).observed_at)
    whole(Code.INVALID_ARGUMENT, "TIME_RANGE_INVERTED", "ends before it begins", filter={"time_range": inverted})
    contradictory = messages.EntryFilter(vessel_ids=["anna"], exclude_vessel_ids=["anna"])
    whole(Code.INVALID_ARGUMENT, "FILTER_CONTRADICTS", "anna", filter=contradictory)
    outside = messages.Area(south=0, west=0, north=91, east=1)
    whole(Code.INVALID_ARGUMENT, "NUMBER_OUT_OF_BOUNDS", "91", filter={"area": outside})
    whole(Code.INVALID_ARGUMENT, "NO_QUERIES", "queries", queries=[])
    whole(Code.FAILED_PRECONDITION, "UNCALIBRATED", "calibrat", ranking=messages.RANKING_FUSED)
    whole(Code.FAILED_PRECONDITION, "UNCALIBRATED", "min_probability", min_probability=0.5)
    whole(Code.INVALID_ARGUMENT, "NUMBER_OUT_OF_BOUNDS", "min_similarity", min_similarity=math.nan)

    def alone(query, code, reason, field, *says):
        failed(caller.failed_query(query), code, reason, field, *says)

    values = [1.0] * (gallery.dimension + 1)
    wide = messages.MatchQuery(embedding=chips.Embedding(values=values))
    alone(wide, Code.FAILED_PRECONDITION, "DIMENSION_MISMATCH", "", str(gallery.dimension),
          str(len(values)))
    values[3] = math.nan
    broken = messages.MatchQuery(embedding=chips.Embedding(values=values))
    alone(broken, Code.INVALID_ARGUMENT, "EMBEDDING_NOT_FINITE", "queries[0].embedding.values", "3")
    zero = messages.MatchQuery(embedding=chips.Embedding(values=[0.0] * gallery.dimension))
    alone(zero, Code.INVALID_ARGUMENT, "EMBEDDING_ZERO", "queries[0].embedding.values", "zero")
    alone(messages.MatchQuery(entry_id="x"), Code.NOT_FOUND, "ENTRY_NOT_FOUND", "", "x")
    alone(messages.MatchQuery(), Code.INVALID_ARGUMENT, "NO_SUBJECT", "queries[0].tracklet", "entry_id")
    north = tracklet(optical, latitude=91.0, longitude=0.0)
    alone(north, Code.INVALID_ARGUMENT, "NUMBER_OUT_OF_BOUNDS",
          "queries[0].tracklet.chips[0].observation.latitude", "91")


def refuses_bad_changes(caller):
    galleries = caller.galleries
    create = gallery_messages.CreateGalleryRequest
    refused(galleries.CreateGallery, create(name=GALLERY), Code.ALREADY_EXISTS, "GALLERY_EXISTS", GALLERY)
    refused(galleries.CreateGallery, create(name="../up"), Code.INVALID_ARGUMENT, "GALLERY_NAME_INVALID", "a-z")
    refused(galleries.CreateGallery, create(name="g", model="0" * 64), Code.NOT_FOUND, "MODEL_NOT_FOUND", "0" * 64)
    update = gallery_messages.UpdateEntriesRequest(gallery=GALLERY, updates=[{"entry_id": "a"}])
    refused(galleries.UpdateEntries, update, Code.INVALID_ARGUMENT, "UPDATE_MASK_EMPTY", "vessel_id")
    update.update_mask.paths.append("modality")
    refused(galleries.UpdateEntries, update, Code.INVALID_ARGUMENT, "UPDATE_MASK_UNKNOWN", "modality")
    delete = gallery_messages.DeleteEntriesRequest(gallery=GALLERY, filter=messages.EntryFilter())
    refused(galleries.DeleteEntries, delete, Code.INVALID_ARGUMENT, "FILTER_EMPTY", "delete the gallery")
    listing = gallery_messages.ListEntriesRequest(gallery=GALLERY, page_token="no token")
    refused(galleries.ListEntries, listing, Code.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID", "page_token")


def enrols_in_batches(caller, gallery, optical):
    """As a caller does that cannot stream."""
    axis = [1.0] + [0.0] * (gallery.dimension - 1)
    request = gallery_messages.EnrollEntriesRequest(gallery=GALLERY)
    for entry_id, source in [
        ("h", chip(optical)), ("h", chip(optical)), ("h", ready(axis, gallery.model)),
        ("k", chips.Chip(image=b"no image", modality=SAR)), ("l", ready(axis, gallery.model)),
    ]:
        request.entries.append(item(entry_id, source))
        request.entries[-1].gallery = ""
    enroll = caller.galleries.EnrollEntries
    created, twice, conflict, broken, last = enroll(request, timeout=TIMEOUT).results
    assert created.outcome == last.outcome == gallery_messages.ENROLL_OUTCOME_CREATED, (created, last)
    assert twice.outcome == gallery_messages.ENROLL_OUTCOME_UNCHANGED, twice
    failed(conflict.error, Code.ALREADY_EXISTS, "ENTRY_EXISTS", "", "h")
    failed(broken.error, Code.INVALID_ARGUMENT, "IMAGE_FORMAT_UNKNOWN", "entries[3].chip.image")
    again = enroll(request, timeout=TIMEOUT).results
    assert [again[0].outcome, again[4].outcome] == [gallery_messages.ENROLL_OUTCOME_UNCHANGED] * 2, again
    found = caller.match(tracklet(optical), filter=messages.EntryFilter(entry_ids=["h"]))
    assert math.isclose(found.candidates[0].similarity, 1.0, abs_tol=1e-5), found

    request.entries[3].gallery = COPY
    refused(enroll, request, Code.INVALID_ARGUMENT, "GALLERY_CHANGED", COPY)
    del request.entries[:]
    refused(enroll, request, Code.INVALID_ARGUMENT, "NO_ENTRIES", "1 to 1000")


def deletes(caller, optical):
    ids = gallery_messages.EntryIds(entry_ids=["a", "x"])
    delete = gallery_messages.DeleteEntriesRequest(gallery=GALLERY, ids=ids)
    assert caller.galleries.DeleteEntries(delete, timeout=TIMEOUT).deleted == 1
    assert caller.galleries.DeleteEntries(delete, timeout=TIMEOUT).deleted == 0
    assert caller.entries("a").missing_entry_ids == ["a"]
    left = caller.match(tracklet(optical), group_by=messages.GROUP_BY_ENTRY)
    assert "a" not in {candidate.entry_id for candidate in left.candidates}, left


def failed(error, code, reason, field, *says):
    """Checks why an item of a batch failed: the same code, reason and field as a call's own refusal has."""
    assert (error.code, error.reason, error.field) == (code.value[0], reason, field), error
    assert all(text in error.message for text in says), (says, error)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
