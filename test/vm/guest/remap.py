#!/usr/bin/env python3
"""Exchanges memory under a vhost-vdpa block device, by a driver that shares no code with the product.

usage: remap.py remap|hostile|hammer|machine DEVICE IMAGE
       remap.py load DEVICE IMAGE TURNS

It compares what went over the device with IMAGE, the file that is served. `remap` exchanges the
memory behind an address and proves that the device follows; `load` does so TURNS times under
requests; `hostile` maps memory that cannot work; `hammer` keeps requests in flight until it is
killed; `machine` does so with 2 GiB mapped, as a virtual machine has. Each proof is a line
"ok - WHAT" or "not ok - WHAT"; the status is 0 when all are ok.
"""

import ctypes
import mmap
import os
import select
import sys

from remap_load import load
from vdpa_driver import (
    ACKNOWLEDGE,
    AREA,
    BLK_T_IN,
    BLK_T_OUT,
    CONTROL_BYTES,
    CONTROL_IOVA,
    DATA_BYTES,
    DATA_IOVA,
    DRIVER,
    DRIVER_OK,
    Device,
    FEATURES_OK,
    GET_DEVICE_ID,
    GET_STATUS,
    GET_VRING_NUM,
    IOTLB_UPDATE,
    Image,
    KIB,
    MAX_REQUESTS,
    Memory,
    PAGE,
    Places,
    QUEUE_SIZE,
    READ_WRITE,
    Stuck,
    check,
    failed,
    note,
    pattern,
)

HUGE_PAGE = 2 << 20
MACHINE_IOVA = 1 << 24
MACHINE_BYTES = 2 << 30

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
    modes = {"remap": remap, "hostile": hostile, "load": load, "hammer": hammer, "machine": machine}
    words = sys.argv[1:]
    if len(words) != (4 if words[:1] == ["load"] else 3) or words[0] not in modes:
        sys.exit(__doc__)
    mode, device, image, *turns = words
    try:
        modes[mode](device, Image(image), *map(int, turns))
    except (Stuck, OSError) as error:
        check(False, "runs to its end", repr(error))
    sys.exit(1 if failed() else 0)


main()
