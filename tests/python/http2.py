"""Just enough HTTP/2 to misuse it: frames by hand, over TLS, from an address of one's own."""

import asyncio
import contextlib
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW = 4
STANDARD_WINDOW, WINDOW_MAX = 65_535, 2**31 - 1
FRAME_MAX = 16_384


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def hello(window=WINDOW_MAX):
    """What a client opens a connection with: the preface, and the window of each of its calls."""
    return (PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW, window))
            + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW_MAX - STANDARD_WINDOW)))


def message(data, announced=None):
    """A message of gRPC; what is `announced` need not come."""
    return b"\0" + struct.pack(">I", len(data) if announced is None else announced) + data


def header(name, value):
    """As a literal that is never indexed, without Huffman's code."""
    parts = [part.encode() for part in (name, value)]
    assert all(len(part) < 127 for part in parts), "a length of one byte"
    return b"\x10" + b"".join(bytes([len(part)]) + part for part in parts)


class Connection:
    """A connection whose answers are read and forgotten. Its windows are kept, so that the server has no reason to complain."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.over = asyncio.Event()
        self.opened = 0
        self.open = {}
        self.window, self.initial_window = STANDARD_WINDOW, STANDARD_WINDOW
        self.moved = asyncio.Condition()
        self.listening = asyncio.create_task(self.listen())

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, target, window=WINDOW_MAX):
        reader, writer = await target.encrypted()
        connection = cls(reader, writer)
        try:
            writer.write(hello(window))
            yield connection
        finally:
            connection.listening.cancel()
            writer.transport.abort()

    async def listen(self):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await self.reader.readexactly(9)
                payload = await self.reader.readexactly(int.from_bytes(head[:3]))
                await self.heard(head[3], head[4], int.from_bytes(head[5:]), payload)
        self.over.set()
        async with self.moved:
            self.moved.notify_all()

    async def heard(self, kind, flags, stream, payload):
        if kind in (SETTINGS, PING) and not flags & ACK:
            self.writer.write(frame(kind, ACK, 0, payload if kind == PING else b""))
        if kind == SETTINGS:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack_from(">HI", payload, at)
                if name == INITIAL_WINDOW:
                    self.open = {stream: left + value - self.initial_window for stream, left in self.open.items()}
                    self.initial_window = value
        elif kind == WINDOW_UPDATE:
            more = int.from_bytes(payload)
            if stream == 0:
                self.window += more
            elif stream in self.open:
                self.open[stream] += more
        elif kind == RESET or kind in (DATA, HEADERS) and flags & END_STREAM:
            self.open.pop(stream, None)
        else:
            return
        async with self.moved:
            self.moved.notify_all()

    def call(self, path, key=None, data=b"", end=False):
        """Begins a call, with the first of its bytes; the number of its stream."""
        stream = 2 * self.opened + 1
        self.opened += 1
        self.open[stream] = self.initial_window - len(data)
        self.window -= len(data)
        headers = [(":method", "POST"), (":scheme", "https"), (":path", path), (":authority", "server"),
                   ("content-type", "application/grpc"), ("te", "trailers")]
        if key:
            headers.append(("authorization", f"Bearer {key}"))
        self.writer.write(frame(HEADERS, END_HEADERS, stream, b"".join(header(*pair) for pair in headers)))
        if data or end:
            self.writer.write(frame(DATA, END_STREAM if end else 0, stream, data))
        return stream

    def reset(self, stream):
        self.open.pop(stream, None)
        self.writer.write(frame(RESET, 0, stream, struct.pack(">I", 8)))

    async def send(self, stream, data):
        """Sends as much as the windows let through, until all is sent or the call is over; whether it was sent."""
        while data:
            async with self.moved:
                await self.moved.wait_for(lambda: self.is_done(stream) or min(self.window, self.open[stream]) > 0)
            if self.is_done(stream):
                return False
            piece = data[:min(FRAME_MAX, self.window, self.open[stream])]
            data = data[len(piece):]
            self.window -= len(piece)
            self.open[stream] -= len(piece)
            self.writer.write(frame(DATA, 0, stream, piece))
            await self.writer.drain()
        return True

    def is_done(self, stream):
        return self.over.is_set() or stream not in self.open

    async def done(self, streams):
        """Waits until all these calls are over."""
        async with self.moved:
            await self.moved.wait_for(lambda: all(self.is_done(stream) for stream in streams))
