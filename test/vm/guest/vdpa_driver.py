"""A driver of a vhost-vdpa block device that shares no code with the product: one split virtqueue,
driven by hand, and the memory behind it.
"""

import ctypes
import fcntl
import mmap
import os
import select
import struct

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

QUEUE_SIZE = 128
# A request takes three descriptors: header, data, status.
MAX_REQUESTS = QUEUE_SIZE // 3

# Low, as a machine's memory is: where the bounce buffer of virtio_vdpa lies too.
CONTROL_IOVA = 0
DATA_IOVA = 1 << 20
DATA_BYTES = 1 << 20

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


def failed():
    """True when a proof failed."""
    return failures > 0


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
        """The last field of the answer; the fields before it ask, and are zero."""
        return struct.unpack(form, fcntl.ioctl(self.fd, request, bytes(struct.calcsize(form))))[-1]

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
        return self.get(GET_VRING_BASE, "=II")

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
