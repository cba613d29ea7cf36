"""In the test machine: a guest's driver for the RPMB (virtio device 28), by TAP."""
import os
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../../rpmb")]
import peer  # noqa: E402
from virtio_pci import Device  # noqa: E402

OK, COUNT_FAILURE, WRITE_FAILURE, NO_AUTH_KEY = 0, 3, 5, 7
KEY = bytes(range(32))
NONCE = bytes(range(16, 32))
ADDRESS = 509

points = 0


def point(right, name):
    global points
    points += 1
    print(f"{'ok' if right else 'not ok'} {points} - {name}", flush=True)


def answers(reply, key=None):
    """Result and counter of a reply; None where its MAC is not of that key."""
    if len(reply) % 512 or not reply:
        return None
    last = reply[-512:]
    if key is not None and last[196:228] != peer.mac_of(key, reply):
        return None
    counter, _address, _blocks, result, kind = struct.unpack(">IHHHH", last[500:])
    return kind, result, counter


def write(counter, blocks):
    frames = b"".join(peer.frame(3, len(blocks), ADDRESS, counter, data=data) for data in blocks)
    last = len(frames) - 512
    mac = peer.mac_of(KEY, frames)
    return frames[:last + 196] + mac + frames[last + 228:] + peer.frame(5)


print("TAP version 14")
device = Device(28)
print(f"# queue of {device.size}, configuration {device.config(3).hex()}")
point(device.config(3) == bytes([8, 32, 32]), "capacity and limits")

ask_counter = peer.frame(2, nonce=NONCE)
point(answers(device.exchange(ask_counter, 512)) == (0x200, NO_AUTH_KEY, 0), "no key yet")
key_reply = device.exchange(peer.frame(1, mac=KEY) + peer.frame(5), 512)
point(answers(key_reply, KEY) == (0x100, OK, 0), "the key is programmed")
second = device.exchange(peer.frame(1, mac=bytes(32)) + peer.frame(5), 512)
point(answers(second) == (0x100, WRITE_FAILURE, 0), "but once")
point(answers(device.exchange(ask_counter, 512), KEY) == (0x200, OK, 0), "the counter is 0")

data = [os.urandom(256) for _ in range(4)]
frames = write(0, data)
point(answers(device.exchange(frames, 512), KEY) == (0x300, OK, 1), "four blocks are written")
reply = device.exchange(peer.frame(4, 4, ADDRESS, nonce=NONCE), 4 * 512)
point(answers(reply, KEY) == (0x400, OK, 0), "four blocks are read")
point([reply[at + 228:at + 484] for at in range(0, len(reply), 512)] == data, "and are the same")
point(reply[-28:-12] == NONCE, "with the nonce")
point(answers(device.exchange(frames, 512), KEY) == (0x300, COUNT_FAILURE, 1), "a replay is refused")
point(answers(device.exchange(ask_counter, 512), KEY) == (0x200, OK, 1), "the counter is 1")
point(device.exchange(bytes(100), 512) == b"", "part of a frame: nothing is written")
point(answers(device.exchange(ask_counter, 512), KEY) == (0x200, OK, 1), "and it goes on")
print(f"1..{points}")
