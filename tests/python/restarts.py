"""A caller in a steady loop over restarts of its server, with the service config that docs/operations.md documents.

Prints `answered` for every unary call, and `enrolled` for every stream that was answered in full. Once its input ends, so
do its loops; exit code 1 if a unary call failed (other than with UNAVAILABLE, where the server is killed), or if an entry was
lost or stored twice.

Usage: restarts.py ADDRESS IMAGE_FOLDER DOCUMENT restarted|killed
"""

import itertools
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from contract import TIMEOUT, chips, gallery_messages, gallery_services, messages, services

GALLERY = "restarts"
ITEMS = 8
# More than gRPC keeps of a call for a retry, unless told to.
LARGE = 512 << 10
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def main(address, images, document, killed):
    channel = documented(document, address)
    caller = Caller(channel, (images / "0003_c_25x110_SAR.tif").read_bytes())
    caller.galleries.CreateGallery(gallery_messages.CreateGalleryRequest(name=GALLERY), timeout=TIMEOUT)
    caller.enrol(0)

    loops = [caller.embed, caller.embed_large, caller.match, caller.get, caller.update] * 2
    with ThreadPoolExecutor(len(loops) + 1) as threads:
        running = [threads.submit(caller.repeat, loop) for loop in loops] + [threads.submit(caller.enrol_all)]
        sys.stdin.read()
        caller.stopping.set()
    for loop in running:
        loop.result()
    caller.check_entries()
    # A call whose answer had begun to arrive when the server was killed is the caller's to repeat.
    lost = [failed for failed in caller.failed if not (killed and UNAVAILABLE.name in failed)]
    assert not lost, lost


def documented(document, address):
    """The channel as the document's example in Python makes it, with the service config that the document has."""
    text = document.read_text()
    config, = re.findall(r"```json\n(\{\"methodConfig\".*?)```", text, re.DOTALL)
    example, = re.findall(r"```python\n(channel = .*?)```", text, re.DOTALL)
    names = {"grpc": grpc, "address": address, "config": config}
    exec(example, names)
    return names["channel"]


def say(word):
    # One write: threads would tear a line and its end apart.
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


class Caller:
    """Calls in loops until it is told to stop; `failed` are unary calls."""

    def __init__(self, channel, image):
        self.service, self.galleries = services.ShipReIdStub(channel), gallery_services.GalleriesStub(channel)
        self.chip = chips.Chip(image=image, modality=chips.MODALITY_SAR)
        self.stopping = threading.Event()
        self.failed, self.acknowledged = [], []

    def repeat(self, call):
        while not self.stopping.is_set():
            try:
                call()
            except grpc.RpcError as error:
                self.failed.append(f"{call.__name__}: {error.code().name}: {error.details()}")
            say("answered")

    def embed(self):
        self.embed_chip(self.chip)

    def embed_large(self):
        # Readers of TIFF ignore what follows an image.
        padded = self.chip.image + bytes(LARGE)
        self.embed_chip(chips.Chip(image=padded, modality=self.chip.modality))

    def embed_chip(self, chip):
        result, = self.service.Embed(messages.EmbedRequest(chips=[chip]), timeout=TIMEOUT).results
        assert result.HasField("embedding"), result

    def match(self):
        query = messages.MatchQuery(tracklet=messages.Tracklet(chips=[self.chip]))
        result, = self.service.Match(messages.MatchRequest(gallery=GALLERY, queries=[query]), timeout=TIMEOUT).results
        assert result.candidates, result

    def get(self):
        request = gallery_messages.GetEntriesRequest(gallery=GALLERY, entry_ids=["0-0"])
        assert len(self.galleries.GetEntries(request, timeout=TIMEOUT).entries) == 1

    def update(self):
        update = gallery_messages.EntryUpdate(entry_id="0-0", vessel_id="anna")
        request = gallery_messages.UpdateEntriesRequest(gallery=GALLERY, updates=[update])
        request.update_mask.paths.append("vessel_id")
        self.galleries.UpdateEntries(request, timeout=TIMEOUT)

    def enrol_all(self):
        numbers = itertools.count(1)
        while not self.stopping.is_set():
            self.enrol(next(numbers))
            say("enrolled")

    def enrol(self, number):
        """Enrols items of one stream; what a broken stream has not acknowledged is sent again."""
        left = {f"{number}-{place}" for place in range(ITEMS)}
        while left:
            items = [gallery_messages.EnrollRequest(gallery=GALLERY, entry_id=name, chip=self.chip) for name in left]
            try:
                for answer in self.galleries.Enroll(iter(items), timeout=TIMEOUT):
                    assert not answer.HasField("error"), answer
                    left.remove(answer.entry_id)
                    self.acknowledged.append(answer.entry_id)
            except grpc.RpcError as error:
                assert error.code() == UNAVAILABLE, error

    def check_entries(self):
        stored, token = [], ""
        while True:
            request = gallery_messages.ListEntriesRequest(gallery=GALLERY, page_size=1000, page_token=token)
            page = self.galleries.ListEntries(request, timeout=TIMEOUT)
            stored += [entry.entry_id for entry in page.entries]
            token = page.next_page_token
            if not token:
                break
        assert sorted(stored) == sorted(self.acknowledged), (len(stored), len(self.acknowledged))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "killed")
