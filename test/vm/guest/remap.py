#!/usr/bin/env python3
"""A driver of a vhost-vdpa block device that shares no code with the product.

usage: remap.py remap|hostile|hammer|machine DEVICE IMAGE

It drives one split virtqueue by itself and compares what went over it with IMAGE, the file that is
served. `remap` exchanges the memory behind an address and proves that the device follows; `hostile`
maps memory that cannot work; `hammer` keeps requests in flight until it is killed; `machine` does so
with 2 GiB mapped, as a virtual machine has. Each proof is a line "ok - WHAT" or "not ok - WHAT"; the
status is 0 when all are ok.
"""

import ctypes
import fcntl
import mmap
import os
import select
import struct
import sys

KIB = 1024
PAGE = 4 * KIB
SECTOR = 512

# ioctls of linux/vhost.h, as x86 and ARM number them


def _ioc(direction, number, size):
    return direction << 30 | size << 16 | 0xAF << 8 | number


def _io(number):
    return _ioc(0, number, 0)


def _iow(number, size):
    return _ioc(1, number, size)


def _ior(number, size):
    return _ioc(2, number, size)


def _iowr(number, size):
    return _ioc(3, number, size)


GET_FEATURES = _ior(0x00, 8)
SET_FEATURES = _iow(0x00, 8)
SET_OWNER = _io(0x01)
SET_VRING_NUM = _iow(0x10, 8)
SET_VRING_ADDR = _iow(0x11, 40)
SET_VRING_BASE = _iow(0x12, 8)
GET_VRING_BASE = _iowr(0x12, 8)
SET_VRING_KICK = _iow(0x20, 8)
SET_VRING_CALL = _iow(0x21, 8)
SET_BACKEND_FEATURES = _iow(0x25, 8)
GET_BACKEND_FEATURES = _ior(0x26, 8)
GET_DEVICE_ID = _ior(0x70, 4)
GET_STATUS = _ior(0x71, 1)
SET_STATUS = _iow(0x72, 1)
SET_VRING_ENABLE = _iow(0x75, 8)
GET_VRING_NUM = _ior(0x76, 2)

BACKEND_IOTLB_MSG_V2 = 1 << 1
BACKEND_IOTLB_BATCH = 1 << 2

IOTLB_MSG_V2 = 2
IOTLB_UPDATE, IOTLB_INVALIDATE, IOTLB_BATCH_BEGIN, IOTLB_BATCH_END = 2, 3, 5, 6
READ_WRITE = 3

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8

BLK_T_IN, BLK_T_OUT = 0, 1
VERSION_1, ACCESS_PLATFORM = 1 << 32, 1 << 33

DESC_NEXT, DESC_WRITE = 1, 2

QUEUE_SIZE = 64
# A request takes three descriptors: header, data, status.
MAX_REQUESTS = QUEUE_SIZE // 3

# Low, as a machine's memory is: where the bounce buffer of virtio_vdpa lies too.
CONTROL_IOVA = 0
DATA_IOVA = 1 << 20
DATA_BYTES = 1 << 20
HUGE_PAGE = 2 << 20
MACHINE_IOVA = 1 << 24
MACHINE_BYTES = 2 << 30

# Places in the control region
DESC, AVAIL, USED, HEADERS, STATUSES = 0x0000, 0x1000, 0x2000, 0x3000, 0x3800
CONTROL_BYTES = 0x4000

# The part of the image it writes to; other clients keep to the first half.
AREA = 32 << 20
AREA_BYTES = 16 << 20

failures = 0


def check(ok, what, detail=""):
    global failures
    if not ok:
        failures += 1
    print("ok" if ok else "not ok", "-", what, *([f"({detail})"] if detail and not ok else []), flush=True)


def note(text):
    print("#", text, flush=True)


class Stuck(Exception):
    """A request was not answered in time."""


def pattern(seed, length):
    """Bytes that no other seed yields."""
    word = struct.pack("<Q", (seed * 0x9E3779B97F4A7C15 + 0x0123456789ABCDEF) & (2**64 - 1))
    return word * (length // 8)


class Memory:
    """A memfd, mapped."""

    def __init__(self, size, flags=0):
        self.size = size
        self.fd = os.memfd_create("remap", os.MFD_CLOEXEC | flags)
        os.ftruncate(self.fd, size)
        self.map = mmap.mmap(self.fd, size, mmap.MAP_SHARED)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def __del__(self):
        os.close(self.fd)

    def fill(self, seed):
        self.map[:] = pattern(seed, self.size)
        return self

    def bytes(self):
        return self.map[:]

    def word(self, at):
        """A 16-bit word the device writes or reads meanwhile: struct would move it byte by byte."""
        return ctypes.c_uint16.from_buffer(self.map, at)


class Device:
    """/dev/vhost-vdpa-N, shaken hands with."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR)
        self.kick = os.eventfd(0)
        self.call = os.eventfd(0)
        fcntl.ioctl(self.fd, SET_OWNER)
        offered = self.get(GET_BACKEND_FEATURES, "=Q")
        self.batches = offered & BACKEND_IOTLB_BATCH != 0
        wanted = offered & (BACKEND_IOTLB_MSG_V2 | BACKEND_IOTLB_BATCH)
        self.set(SET_BACKEND_FEATURES, "=Q", wanted)
        self.control = None

    def set(self, request, form, *values):
        fcntl.ioctl(self.fd, request, struct.pack(form, *values))

    def get(self, request, form):
        return struct.unpack(form, fcntl.ioctl(self.fd, request, bytes(struct.calcsize(form))))[0]

    def set_status(self, status):
        self.set(SET_STATUS, "=B", status)

    def message(self, kind, iova=0, size=0, address=0, permission=0):
        # struct vhost_msg_v2: type, asid, then struct vhost_iotlb_msg in 64 bytes
        head = struct.pack("=IIQQQBB", IOTLB_MSG_V2, 0, iova, size, address, permission, kind)
        os.write(self.fd, head.ljust(72, b"\0"))

    def map(self, iova, memory, size=None, offset=0):
        address = memory.address + offset
        self.message(IOTLB_UPDATE, iova, size or memory.size, address, READ_WRITE)

    def unmap(self, iova, size):
        self.message(IOTLB_INVALIDATE, iova, size)

    def remap(self, iova, memory):
        """At once where the kernel can, so that no request ever finds nothing there."""
        if self.batches:
            self.message(IOTLB_BATCH_BEGIN)
        self.unmap(iova, memory.size)
        self.map(iova, memory)
        if self.batches:
            self.message(IOTLB_BATCH_END)

    def start(self):
        """From reset to DRIVER_OK, with a new control region."""
        self.set_status(0)
        if self.control is not None:
            # A reset leaves this client's mappings as they are.
            self.unmap(0, 1 << 61)
        self.control = Memory(CONTROL_BYTES)
        self.map(CONTROL_IOVA, self.control)
        self.next_avail = 0
        self.seen_used = 0
        self.free = list(range(MAX_REQUESTS))
        self.go()
        return self

    def go(self):
        """To DRIVER_OK, from where the ring stands."""
        self.set_status(ACKNOWLEDGE)
        self.set_status(ACKNOWLEDGE | DRIVER)
        offered = self.get(GET_FEATURES, "=Q")
        self.set(SET_FEATURES, "=Q", offered & (VERSION_1 | ACCESS_PLATFORM))
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK)
        self.set(SET_VRING_NUM, "=II", 0, QUEUE_SIZE)
        self.set(
            SET_VRING_ADDR, "=IIQQQQ", 0, 0,
            CONTROL_IOVA + DESC, CONTROL_IOVA + USED, CONTROL_IOVA + AVAIL, 0,
        )
        self.set(SET_VRING_BASE, "=II", 0, self.next_avail)
        self.set(SET_VRING_KICK, "=Ii", 0, self.kick)
        self.set(SET_VRING_CALL, "=Ii", 0, self.call)
        self.set(SET_VRING_ENABLE, "=II", 0, 1)
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    def base(self):
        """Where the device says that the queue stands; this stops it."""
        return struct.unpack("=II", fcntl.ioctl(self.fd, GET_VRING_BASE, bytes(8)))[1]

    def submit(self, kind, disk, iova, length):
        """Make one request available; its number."""
        number = self.free.pop()
        control = self.control.map
        header = HEADERS + number * 16
        status = STATUSES + number
        struct.pack_into("<IIQ", control, header, kind, 0, disk // SECTOR)
        control[status] = 0xFF
        first = number * 3
        data_flags = DESC_NEXT | (DESC_WRITE if kind == BLK_T_IN else 0)
        for index, (address, size, flags) in enumerate((
            (CONTROL_IOVA + header, 16, DESC_NEXT),
            (iova, length, data_flags),
            (CONTROL_IOVA + status, 1, DESC_WRITE),
        )):
            struct.pack_into(
                "<QIHH", control, DESC + (first + index) * 16,
                address, size, flags, first + index + 1 if flags & DESC_NEXT else 0,
            )
        slot = AVAIL + 4 + self.next_avail % QUEUE_SIZE * 2
        self.control.word(slot).value = first
        self.next_avail = (self.next_avail + 1) & 0xFFFF
        self.control.word(AVAIL + 2).value = self.next_avail
        return number

    def notify(self):
        os.eventfd_write(self.kick, 1)

    def wait(self, count, seconds=30):
        """The numbers and status bytes of the next `count` requests that end."""
        done = {}
        poll = select.poll()
        poll.register(self.call, select.POLLIN)
        while len(done) < count:
            if self.control.word(USED + 2).value == self.seen_used:
                if not poll.poll(seconds * 1000):
                    raise Stuck(f"{count - len(done)} requests are not answered")
                os.eventfd_read(self.call)
                continue
            at = USED + 4 + self.seen_used % QUEUE_SIZE * 8
            head, _ = struct.unpack_from("<II", self.control.map, at)
            self.seen_used = (self.seen_used + 1) & 0xFFFF
            number = head // 3
            done[number] = self.control.map[STATUSES + number]
            self.free.append(number)
        return done

    def transfer(self, kind, disk, iova, length, seconds=30):
        """One request; its status byte."""
        number = self.submit(kind, disk, iova, length)
        self.notify()
        return self.wait(1, seconds)[number]


class Image:
    """The served file, looked at from behind."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR)

    def read(self, at, length):
        return os.pread(self.fd, length, at)

    def write(self, at, data):
        os.pwrite(self.fd, data, at)


class Places:
    """Ranges of the image, one after another, and seeds of which none comes twice."""

    def __init__(self):
        self.seed = 0
        self.at = 0

    def seeds(self, count):
        self.seed += count
        return range(self.seed - count + 1, self.seed + 1)

    def place(self, length):
        if self.at + length > AREA_BYTES:
            self.at = 0
        self.at += length
        return AREA + self.at - length


LENGTH = 16 * KIB


def exchange(device, image, places, here, others):
    """A read and a write at DATA_IOVA, behind which `here` is mapped; what went wrong with them."""
    wrong = []
    offset = places.seed % 16 * LENGTH
    seeds = iter(places.seeds(3 + len(others)))
    here.fill(next(seeds))
    for other in others:
        other.fill(next(seeds))
    before = [other.bytes() for other in others]

    disk = places.place(LENGTH)
    data = pattern(next(seeds), LENGTH)
    image.write(disk, data)
    expected = bytearray(here.bytes())
    expected[offset:offset + LENGTH] = data
    status = device.transfer(BLK_T_IN, disk, DATA_IOVA + offset, LENGTH)
    if status != 0:
        wrong.append(f"read: status {status}")
    if here.bytes() != expected:
        wrong.append("read: its data is not (only) where it belongs")

    data = pattern(next(seeds), LENGTH)
    disk = places.place(LENGTH)
    here.map[offset:offset + LENGTH] = data
    status = device.transfer(BLK_T_OUT, disk, DATA_IOVA + offset, LENGTH)
    if status != 0:
        wrong.append(f"write: status {status}")
    if image.read(disk, LENGTH) != data:
        wrong.append("write: its data was taken from elsewhere")
    for other, bytes_before in zip(others, before):
        if other.bytes() != bytes_before:
            wrong.append("memory that is not mapped was written to")
    return wrong


def remap(path, image):
    places = Places()
    device = Device(path)
    note(f"IOTLB batching {'offered' if device.batches else 'not offered'}")
    check(device.get(GET_DEVICE_ID, "=I") == 2, "a block device")
    check(device.get(GET_VRING_NUM, "=H") >= QUEUE_SIZE, "room for the queue")
    device.start()
    check(
        device.get(GET_STATUS, "=B") == ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
        "DRIVER_OK is taken",
    )

    a, b = Memory(DATA_BYTES), Memory(DATA_BYTES)
    device.map(DATA_IOVA, a)
    wrong = exchange(device, image, places, a, [b])
    check(not wrong, "a read lands in A, a write takes its data from A", wrong)
    for turn in range(3):
        for here, there, name in ((b, a, "B"), (a, b, "A")):
            device.unmap(DATA_IOVA, DATA_BYTES)
            device.map(DATA_IOVA, here)
            wrong = exchange(device, image, places, here, [there])
            check(not wrong, f"remapped to {name}, turn {turn + 1}: I/O uses {name} only", wrong)

    wrong = []
    old = a
    for _ in range(50):
        new = Memory(DATA_BYTES)
        device.remap(DATA_IOVA, new)
        wrong += exchange(device, image, places, new, [old])
        old = new
    check(not wrong, "50 remaps, each to new memory", wrong[:3])

    ring(device, image, places, old)
    shifted(device, image, places, a, b)
    huge(device, image, places)
    stopped(device, image, places, a)
    if device.batches:
        in_flight(device, image, places)
    os.close(device.fd)


def ring(device, image, places, here):
    """The ring itself is moved to other memory, at rest."""
    wrong = []
    for _ in range(3):
        old = device.control
        device.control = Memory(CONTROL_BYTES)
        device.control.map[:] = old.bytes()
        device.remap(CONTROL_IOVA, device.control)
        # Whoever still reads it finds a ring that cannot be.
        old.map[:] = b"\xff" * CONTROL_BYTES
        wrong += exchange(device, image, places, here, [])
        if old.bytes() != b"\xff" * CONTROL_BYTES:
            wrong.append("the old ring was written to")
    check(not wrong, "the ring remapped: the device goes on in the new memory", wrong)


def shifted(device, image, places, a, b):
    """The same memory at another offset, then two halves of two files."""
    wrong = []
    half = DATA_BYTES // 2
    device.unmap(DATA_IOVA, DATA_BYTES)
    device.map(DATA_IOVA, a, half, half)
    device.map(DATA_IOVA + half, b, half)
    first, second = places.seeds(2)
    a.fill(first)
    b.fill(second)
    expected_a, expected_b = bytearray(a.bytes()), bytearray(b.bytes())
    (seed,) = places.seeds(1)
    disk = places.place(LENGTH)
    data = b"".join(pattern(seed + i, PAGE) for i in range(LENGTH // PAGE))
    places.seeds(LENGTH // PAGE)
    image.write(disk, data)
    # Across the border of the two mappings.
    status = device.transfer(BLK_T_IN, disk, DATA_IOVA + half - PAGE, LENGTH)
    expected_a[DATA_BYTES - PAGE:] = data[:PAGE]
    expected_b[:LENGTH - PAGE] = data[PAGE:]
    if status != 0 or a.bytes() != expected_a or b.bytes() != expected_b:
        wrong.append(f"read: status {status}")
    disk = places.place(LENGTH)
    status = device.transfer(BLK_T_OUT, disk, DATA_IOVA + half - PAGE, LENGTH)
    if status != 0 or image.read(disk, LENGTH) != data:
        wrong.append(f"write: status {status}")
    check(not wrong, "two memories side by side, at offsets: a request across their border", wrong)


def huge(device, image, places):
    """Memory of huge pages, at offsets that are no multiple of them (as behind a PC's low memory)."""
    wrong = []
    memory = Memory(2 * HUGE_PAGE, os.MFD_HUGETLB)
    for offset in (HUGE_PAGE // 2, HUGE_PAGE - LENGTH, LENGTH):
        device.unmap(DATA_IOVA, DATA_BYTES)
        device.map(DATA_IOVA, memory, DATA_BYTES, offset)
        (seed,) = places.seeds(1)
        data = pattern(seed, LENGTH)
        disk = places.place(LENGTH)
        image.write(disk, data)
        # Across the border of two huge pages, where there is one.
        status = device.transfer(BLK_T_IN, disk, DATA_IOVA + LENGTH // 2, LENGTH)
        at = offset + LENGTH // 2
        if status != 0 or memory.map[at:at + LENGTH] != data:
            wrong.append(f"read at offset {offset}: status {status}")
        disk = places.place(LENGTH)
        status = device.transfer(BLK_T_OUT, disk, DATA_IOVA + LENGTH // 2, LENGTH)
        if status != 0 or image.read(disk, LENGTH) != data:
            wrong.append(f"write at offset {offset}: status {status}")
    device.unmap(DATA_IOVA, DATA_BYTES)
    check(not wrong, "huge pages, at any offset", wrong)


def stopped(device, image, places, here):
    """The queue is stopped by asking where it stands, and goes on there after a reset."""
    device.map(DATA_IOVA, here)
    wrong = exchange(device, image, places, here, [])
    stands = [device.base(), device.base()]
    check(stands == [device.next_avail] * 2, "a queue that is stopped says where it stands", stands)
    device.set_status(0)
    device.go()
    wrong += exchange(device, image, places, here, [])
    check(not wrong, "it goes on there after a reset", wrong)


def in_flight(device, image, places):
    """Remapped while reads are in flight: once that has returned, A is nobody's but ours."""
    wrong = []
    late = 0
    length = DATA_BYTES // MAX_REQUESTS // PAGE * PAGE
    for _ in range(8):
        a, b = Memory(DATA_BYTES), Memory(DATA_BYTES)
        device.remap(DATA_IOVA, a)
        wanted = {}
        for slot in range(MAX_REQUESTS):
            (seed,) = places.seeds(1)
            disk = places.place(length)
            image.write(disk, pattern(seed, length))
            wanted[device.submit(BLK_T_IN, disk, DATA_IOVA + slot * length, length)] = (slot, seed)
        device.notify()
        device.remap(DATA_IOVA, b)
        left = a.bytes()
        done = device.wait(MAX_REQUESTS)
        if any(status != 0 for status in done.values()):
            wrong.append("a read failed")
        if a.bytes() != left:
            wrong.append("A was written to after it was unmapped")
        for slot, seed in wanted.values():
            at = slot * length
            data = pattern(seed, length)
            in_b = b.map[at:at + length] == data
            late += in_b
            if not in_b and left[at:at + length] != data:
                wrong.append("a read landed neither in A nor in B")
    note(f"remapped in flight: {late} of {8 * MAX_REQUESTS} reads landed in the new memory")
    check(not wrong, "remapped with reads in flight: none is lost, A is left alone afterwards", wrong[:3])


def hostile(path, image):
    """Memory that cannot work stops the queue; after a reset the same client is served."""
    device = Device(path)
    places = Places()

    def recovers(what):
        device.start()
        memory = Memory(DATA_BYTES)
        device.map(DATA_IOVA, memory)
        wrong = exchange(device, image, places, memory, [])
        check(not wrong, f"{what}; served again after a reset", wrong)

    def refused(iova, kind=BLK_T_IN):
        """No answer, or one that says it failed."""
        try:
            return device.transfer(kind, AREA, iova, LENGTH, 2) != 0
        except Stuck:
            return True

    device.start()
    check(refused(DATA_IOVA), "a read into nothing is refused")
    recovers("an address that is not mapped")

    device.start()
    device.map(1 << 60, Memory(DATA_BYTES))
    check(refused(1 << 60), "a read to an address past 2^53 is refused")
    recovers("an address past 2^53")

    device.start()
    memory = Memory(DATA_BYTES)
    device.map(DATA_IOVA, memory)
    os.ftruncate(memory.fd, 0)
    check(refused(DATA_IOVA), "a read into a file cut to nothing is refused")
    recovers("a file cut to nothing")

    device.start()
    os.ftruncate(device.control.fd, 0)
    device.notify()
    select.select([], [], [], 0.5)
    recovers("a ring cut to nothing")

    device.start()
    # Mapped for reading only, from a file opened so; the message claims that it can be written.
    with open(__file__, "rb") as file:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        address = libc.mmap(None, PAGE, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        device.message(IOTLB_UPDATE, DATA_IOVA, PAGE, address, READ_WRITE)
    check(refused(DATA_IOVA), "a read into a file opened for reading is refused")
    recovers("a file opened for reading")

    os.close(device.fd)


def machine(path, image):
    """A client with so much memory that it covers the addresses virtio_vdpa puts its rings at."""
    hammer(path, image, Memory(MACHINE_BYTES))


def hammer(path, image, more=None):
    """Reads and writes until killed, every one compared."""
    device = Device(path).start()
    if more is not None:
        device.map(MACHINE_IOVA, more)
    memory = Memory(DATA_BYTES)
    device.map(DATA_IOVA, memory)
    places = Places()
    length = DATA_BYTES // MAX_REQUESTS // PAGE * PAGE
    total = 0
    while True:
        requests = {}
        for slot in range(MAX_REQUESTS):
            (seed,) = places.seeds(1)
            disk = places.place(length)
            kind = BLK_T_IN if slot % 2 == 0 else BLK_T_OUT
            data = pattern(seed, length)
            if kind == BLK_T_IN:
                image.write(disk, data)
            else:
                memory.map[slot * length:(slot + 1) * length] = data
            number = device.submit(kind, disk, DATA_IOVA + slot * length, length)
            requests[number] = (kind, slot, disk, data)
        device.notify()
        done = device.wait(MAX_REQUESTS)
        for number, (kind, slot, disk, data) in requests.items():
            if kind == BLK_T_IN:
                found = memory.map[slot * length:(slot + 1) * length]
            else:
                found = image.read(disk, length)
            if done[number] != 0 or found != data:
                check(False, "hammer", f"request of type {kind}: status {done[number]}")
                return
        total += MAX_REQUESTS
        print(total, flush=True)


def main():
    modes = {"remap": remap, "hostile": hostile, "hammer": hammer, "machine": machine}
    if len(sys.argv) != 4 or sys.argv[1] not in modes:
        sys.exit(__doc__)
    try:
        modes[sys.argv[1]](sys.argv[2], Image(sys.argv[3]))
    except (Stuck, OSError) as error:
        check(False, "runs to its end", repr(error))
    sys.exit(0 if failures == 0 else 1)


main()
