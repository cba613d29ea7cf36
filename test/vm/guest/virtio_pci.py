"""Drives one queue of a virtio device from user space: virtio-pci through sysfs, by polling.

The interface is the modern one (virtio 1.3 §4.1.4); queue and buffers lie in a huge page, which is
contiguous in physical memory and does not move.
"""
import ctypes
import glob
import mmap
import struct
import time

VENDOR = 0x1af4
MODERN_BASE = 0x1040
VERSION_1 = 1 << 32
HUGE_PAGE = 2 << 20
MAP_HUGETLB = 0x40000
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8
NEXT, WRITE = 1, 2
PATIENCE = 60


def contents(path):
    with open(path) as file:
        return file.read()


def tell(path, text):
    with open(path, "w") as file:
        file.write(text)


def find(virtio_id):
    """The folder in sysfs of the PCI device that is virtio device `virtio_id`."""
    for folder in glob.glob("/sys/bus/pci/devices/*"):
        ids = [int(contents(f"{folder}/{name}"), 16) for name in ("vendor", "device")]
        if ids == [VENDOR, MODERN_BASE + virtio_id]:
            return folder
    raise SystemExit(f"Bail out! no virtio device {virtio_id}")


class Memory:
    """A huge page that the device can reach."""

    def __init__(self):
        tell("/proc/sys/vm/nr_hugepages", "4")
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_HUGETLB
        self.bytes = mmap.mmap(-1, HUGE_PAGE, flags=flags)
        self.bytes[0] = 0
        here = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek(here // 4096 * 8)
            entry, = struct.unpack("<Q", file.read(8))
        if entry >> 63 == 0:
            raise SystemExit("Bail out! the page is not in memory")
        self.address = (entry & ((1 << 55) - 1)) * 4096


class Device:
    """A device with one split queue, one request at a time."""

    def __init__(self, virtio_id):
        folder = find(virtio_id)
        name = folder.rsplit("/", 1)[1]
        # The kernel's own virtio_pci has it, though no driver for what it is.
        if glob.glob(f"{folder}/driver"):
            tell(f"{folder}/driver/unbind", name)
        tell(f"{folder}/enable", "1")
        with open(f"{folder}/config", "r+b", buffering=0) as file:
            self.config_space = file.read(256)
            command, = struct.unpack_from("<H", self.config_space, 4)
            file.seek(4)
            file.write(struct.pack("<H", command | 6))  # memory space, bus master
        self.bars = {}
        self.places = {}
        self._find_structures(folder)
        self.memory = Memory()
        self._start()

    def _find_structures(self, folder):
        """virtio 1.3 §4.1.4: where the common, notify and device structures are."""
        at = self.config_space[0x34]
        while at:
            kind, following, _length, which, bar = self.config_space[at:at + 5]
            if kind == 9 and which in (1, 2, 4):
                offset, = struct.unpack_from("<I", self.config_space, at + 8)
                if bar not in self.bars:
                    with open(f"{folder}/resource{bar}", "r+b", buffering=0) as file:
                        self.bars[bar] = mmap.mmap(file.fileno(), 0)
                self.places.setdefault(which, (self.bars[bar], offset))
                if which == 2:
                    self.multiplier, = struct.unpack_from("<I", self.config_space, at + 16)
            at = following

    def _register(self, kind, offset, which=1):
        """One access of that width: a register is no memory."""
        bar, base = self.places[which]
        return kind.from_buffer(bar, base + offset)

    def _start(self):
        byte, half, word = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32
        common = self._register
        status = common(byte, 20)
        status.value = 0
        while status.value:
            time.sleep(0.001)
        status.value = ACKNOWLEDGE
        status.value = ACKNOWLEDGE | DRIVER
        common(word, 0).value = 1
        if common(word, 4).value & (VERSION_1 >> 32) == 0:
            raise SystemExit("Bail out! the device has no VERSION_1")
        for part, bits in ((0, 0), (1, VERSION_1 >> 32)):
            common(word, 8).value = part
            common(word, 12).value = bits
        status.value = ACKNOWLEDGE | DRIVER | FEATURES_OK
        if status.value & FEATURES_OK == 0:
            raise SystemExit("Bail out! the device refuses VERSION_1")
        common(half, 22).value = 0
        self.size = min(common(half, 24).value, 64)
        common(half, 24).value = self.size
        # Descriptors, available ring, used ring: a page each, buffers behind them.
        for register, page in ((32, 0), (40, 1), (48, 2)):
            address = self.memory.address + page * 4096
            common(word, register).value = address & 0xffffffff
            common(word, register + 4).value = address >> 32
        self.avail = self.used = 0
        struct.pack_into("<HH", self.memory.bytes, 4096, 1, 0)  # no interrupts
        notify_at = common(half, 30).value * self.multiplier
        self.doorbell = self._register(half, notify_at, 2)
        common(half, 28).value = 1
        status.value = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK

    def config(self, length):
        return bytes(self._register(ctypes.c_uint8, i, 4).value for i in range(length))

    def exchange(self, request, room):
        """Send `request`, 512 bytes a descriptor, with room for `room` bytes; what came back."""
        memory = self.memory.bytes
        pieces = [(at, min(512, len(request) - at), 0) for at in range(0, len(request), 512)]
        pieces += [(len(request) + at, min(512, room - at), WRITE) for at in range(0, room, 512)]
        buffers = 3 * 4096
        memory[buffers:buffers + len(request)] = request
        for i, (at, length, flags) in enumerate(pieces):
            last = i == len(pieces) - 1
            struct.pack_into("<QIHH", memory, 16 * i, self.memory.address + buffers + at, length,
                             flags | (0 if last else NEXT), 0 if last else i + 1)
        struct.pack_into("<H", memory, 4096 + 4 + 2 * (self.avail % self.size), 0)
        self.avail = (self.avail + 1) & 0xffff
        ctypes.c_uint16.from_buffer(memory, 4096 + 2).value = self.avail
        self.doorbell.value = 0
        end = time.monotonic() + PATIENCE
        while ctypes.c_uint16.from_buffer(memory, 8192 + 2).value != self.avail:
            if time.monotonic() > end:
                raise SystemExit("Bail out! the device does not answer")
            time.sleep(0.0005)
        _head, length = struct.unpack_from("<II", memory, 8192 + 4 + 8 * (self.used % self.size))
        self.used = (self.used + 1) & 0xffff
        start = buffers + len(request)
        return bytes(memory[start:start + length])
