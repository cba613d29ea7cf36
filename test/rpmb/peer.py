#!/usr/bin/env python3
"""Another program's RPMB client: makes frames and reads replies, with none of vduse's code.

  peer.py key KEYFILE                              frames on standard output
  peer.py counter NONCE
  peer.py write KEYFILE COUNTER ADDRESS DATAFILE
  peer.py read ADDRESS BLOCKS NONCE
  peer.py check KEYFILE REPLYFILE                  what a reply says, as JSON
"""
import hashlib
import hmac
import json
import struct
import sys


def frame(kind, blocks=1, address=0, counter=0, nonce=bytes(16), data=bytes(256), mac=bytes(32)):
    return b"".join([bytes(196), mac, data, nonce,
                     struct.pack(">IHHHH", counter, address, blocks, 0, kind)])


def mac_of(key, frames):
    signed = b"".join(frames[at + 228:at + 512] for at in range(0, len(frames), 512))
    return hmac.new(key, signed, hashlib.sha256).digest()


def contents(path):
    with open(path, "rb") as file:
        return file.read()


def key(path):
    return frame(1, mac=contents(path)) + frame(5)


def counter(nonce):
    return frame(2, nonce=bytes.fromhex(nonce))


def write(path, count, address, file):
    data = contents(file)
    pieces = [data[at:at + 256] for at in range(0, len(data), 256)]
    frames = b"".join(frame(3, len(pieces), int(address), int(count), data=piece)
                      for piece in pieces)
    mac = mac_of(contents(path), frames)
    last = len(frames) - 512
    return frames[:last + 196] + mac + frames[last + 228:] + frame(5)


def read(address, blocks, nonce):
    return frame(4, int(blocks), int(address), nonce=bytes.fromhex(nonce))


def check(path, file):
    reply = contents(file)
    last = reply[-512:]
    counter, address, blocks, result, kind = struct.unpack(">IHHHH", last[500:])
    data = b"".join(reply[at + 228:at + 484] for at in range(0, len(reply), 512))
    return json.dumps({
        "type": kind, "result": result, "counter": counter, "address": address, "blocks": blocks,
        "frames": len(reply) / 512, "nonce": last[484:500].hex(), "data": data.hex(),
        "mac": hmac.compare_digest(mac_of(contents(path), reply), last[196:228]),
    }).encode() + b"\n"


COMMANDS = {"key": key, "counter": counter, "write": write, "read": read, "check": check}
if __name__ == "__main__":
    sys.stdout.buffer.write(COMMANDS[sys.argv[1]](*sys.argv[2:]))
