"""Remapping under load: the memory behind an address is exchanged for fresh memory again and again
while requests use it. A generation is one such memory."""

import threading
import time

from vdpa_driver import (
    BLK_T_IN,
    BLK_T_OUT,
    DATA_IOVA,
    KIB,
    Device,
    Memory,
    Places,
    check,
    note,
    pattern,
)

DEPTH = 32
# Each request in flight has a slot of a generation: even ones are read into, odd ones written from.
SLOT = 8 * KIB
BYTES = DEPTH * SLOT
# How long a generation that was unmapped is watched: in generations.
WATCHED = 4
# Requests that end in each generation at least.
REQUESTS_A_TURN = 8
# How long I/O may stand still, in seconds.
PATIENCE = 30


def written(generation, slot):
    """What a write request takes from that slot of that generation: nothing else is like it."""
    return pattern(generation * DEPTH + slot, SLOT)


def poison(generation):
    """What a generation is filled with once it is unmapped."""
    return pattern((1 << 40) + generation, BYTES)


class Generations:
    """The memories that requests may use: one, and for the time of a remap two."""

    def __init__(self, device):
        self.device = device
        self.lock = threading.Lock()
        # Of those that requests still in flight can have used: the memory, or what it held when it
        # was unmapped.
        self.contents = {}
        self.oldest = self.newest = 0
        self.watched = []
        self.contents[0] = self.memory = self.fresh(0)
        device.map(DATA_IOVA, self.memory)

    def fresh(self, generation):
        memory = Memory(BYTES)
        memory.map[:] = b"".join(written(generation, slot) for slot in range(DEPTH))
        return memory

    def exchange(self):
        """Unmap the memory and map a fresh one; False when one unmapped earlier was touched."""
        old, new = self.memory, self.fresh(self.newest + 1)
        with self.lock:
            self.newest += 1
            self.contents[self.newest] = self.memory = new
        self.device.remap(DATA_IOVA, new)
        # From here on the old one is ours alone: the device has said so.
        with self.lock:
            generation, self.oldest = self.oldest, self.newest
            self.contents[generation] = old.bytes()
            old.map[:] = poison(generation)
        self.watched.append((generation, old))
        return self.release(WATCHED)

    def release(self, keep):
        """Look at what was unmapped, but for the last `keep`; False when it was touched."""
        clean = True
        while len(self.watched) > keep:
            generation, memory = self.watched.pop(0)
            clean = clean and memory.bytes() == poison(generation)
        return clean

    def slot(self, generation, slot):
        contents = self.contents[generation]
        source = contents if isinstance(contents, bytes) else contents.map
        return source[slot * SLOT:(slot + 1) * SLOT]

    def forget(self, before):
        for generation in [one for one in self.contents if one < before]:
            del self.contents[generation]


class Load(threading.Thread):
    """Keeps DEPTH requests in flight, and compares each."""

    def __init__(self, device, image, generations):
        super().__init__(daemon=True)
        self.device = device
        self.image = image
        self.generations = generations
        self.places = Places()
        self.stopping = False
        self.done = 0
        self.across = 0
        self.wrong = []
        # Of each slot: kind, place on the disk, data read, oldest generation it may use.
        self.requests = {}

    def run(self):
        try:
            while not self.stopping:
                while len(self.requests) < DEPTH:
                    self.submit()
                self.device.notify()
                self.reap(1)
            self.reap(len(self.requests))
        except Exception as error:
            self.wrong.append(repr(error))

    def submit(self):
        slot = self.device.free[-1]
        kind = BLK_T_OUT if slot % 2 else BLK_T_IN
        disk = self.places.place(SLOT)
        (seed,) = self.places.seeds(1)
        data = pattern((1 << 41) + seed, SLOT)
        self.image.write(disk, data)
        with self.generations.lock:
            self.requests[slot] = (kind, disk, data, self.generations.oldest)
        self.device.submit(kind, disk, DATA_IOVA + slot * SLOT, SLOT)

    def reap(self, count):
        for slot, status in self.device.wait(count, PATIENCE).items():
            kind, disk, data, oldest = self.requests.pop(slot)
            with self.generations.lock:
                self.compare(slot, status, kind, disk, data, oldest)
                earliest = [one[3] for one in self.requests.values()]
                self.generations.forget(min(earliest, default=self.generations.oldest))
            self.done += 1

    def compare(self, slot, status, kind, disk, data, oldest):
        """The whole request was done in one of the memories that were mapped while it was in flight."""
        possible = range(oldest, self.generations.newest + 1)
        self.across += len(possible) > 1
        if status != 0:
            self.wrong.append(f"request of type {kind}: status {status}")
        elif kind == BLK_T_IN:
            if not any(self.generations.slot(one, slot) == data for one in possible):
                self.wrong.append("a read's data is in no memory that was mapped")
        elif self.image.read(disk, SLOT) not in [written(one, slot) for one in possible]:
            self.wrong.append("a write's data came from no memory that was mapped")


def load(path, image, turns):
    """Exchange the memory so many times."""
    device = Device(path)
    # Without batches a request could find nothing between the two messages.
    check(device.batches, "the kernel exchanges a mapping at once")
    device.start()
    device.free = list(range(DEPTH))
    generations = Generations(device)
    requests = Load(device, image, generations)
    requests.start()
    touched = 0
    begin = time.monotonic()
    for _ in range(turns):
        if not generations.exchange():
            touched += 1
        if not progress(requests):
            break
    seconds = time.monotonic() - begin
    requests.stopping = True
    requests.join(2 * PATIENCE)
    check(not requests.is_alive(), "no request is lost")
    if not generations.release(0):
        touched += 1
    note(
        f"{generations.newest} remaps in {seconds:.1f} s, {requests.done} requests,"
        f" {requests.across} of them in flight during a remap"
    )
    check(generations.newest == turns, f"{turns} remaps to fresh memory with {DEPTH} requests in flight")
    check(requests.across >= turns, "requests were in flight during the remaps")
    check(touched == 0, "no byte lands in memory that was unmapped", touched)
    check(not requests.wrong, "every request used memory that was mapped", requests.wrong[:3])


def progress(requests):
    """Some more requests have ended."""
    wanted = requests.done + REQUESTS_A_TURN
    end = time.monotonic() + PATIENCE
    while requests.done < wanted:
        if requests.wrong or time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True
