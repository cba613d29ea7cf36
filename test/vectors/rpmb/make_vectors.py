#!/usr/bin/env python3
"""RPMB frames and the answers to them, made without any of vduse's code.

Usage: make_vectors.py > vectors.json

Each session is a new device (its limits, its counter) and the chains sent to it, one after
another, with the bytes it must answer. `request` and `reply` are base64 of zlib.
"""
import base64
import hashlib
import hmac
import json
import struct
import sys
import zlib

KEY = hashlib.sha256(b"vduse test key").digest()
OTHER = hashlib.sha256(b"another key").digest()
NONCE = hashlib.md5(b"a nonce").digest()
OK, GENERAL, AUTH, COUNT, ADDR, WRITE, READ, NO_KEY, EXPIRED = 0, 1, 2, 3, 4, 5, 6, 7, 0x80


def frame(kind, result=0, blocks=0, address=0, counter=0, nonce=bytes(16), data=bytes(256),
          mac=bytes(32)):
    head = bytes(196) + mac + data + nonce
    return head + struct.pack(">IHHHH", counter, address, blocks, result, kind)


def sign(key, frames):
    mac = hmac.new(key, b"".join(f[228:] for f in frames), hashlib.sha256).digest()
    last = frames[-1]
    return frames[:-1] + [last[:196] + mac + last[228:]]


def text(seed, blocks):
    line = ("vduse %s " % seed).encode()
    whole = line * (256 * blocks // len(line) + 1)
    return [whole[i * 256:(i + 1) * 256] for i in range(blocks)]


RESULT_READ = frame(5, blocks=1)


def program_key(key, blocks=1):
    return [frame(1, blocks=blocks, mac=key), RESULT_READ]


def get_counter(blocks=1, nonce=NONCE):
    return [frame(2, blocks=blocks, nonce=nonce)]


def write(counter, address, data, key=KEY, blocks=None, result=True):
    said = len(data) if blocks is None else blocks
    frames = [frame(3, blocks=said, address=address, counter=counter, data=d) for d in data]
    return sign(key, frames) + ([RESULT_READ] if result else [])


def read(address, blocks, nonce=NONCE):
    return [frame(4, blocks=blocks, address=address, nonce=nonce)]


class Session:
    def __init__(self, name, counter=0, max_write=4, max_read=4):
        self.out = {"name": name, "counter": counter, "maxWrite": max_write,
                    "maxRead": max_read, "steps": []}
        self.key = None

    def step(self, what, request, reply, room=None, signed=True):
        if signed and self.key is not None and reply:
            reply = sign(self.key, reply)
        pack = lambda frames: base64.b64encode(zlib.compress(b"".join(frames), 9)).decode()
        self.out["steps"].append({"what": what, "room": len(reply) if room is None else room,
                                  "request": pack(request), "reply": pack(reply)})

    def program(self):
        self.key = KEY
        self.step("program the key", program_key(KEY), [frame(0x100)])


def life():
    s = Session("from a new device to a replayed write")
    s.step("counter without a key", get_counter(), [frame(0x200, NO_KEY, nonce=NONCE)])
    s.step("read without a key", read(1, 1), [frame(0x400, NO_KEY, 1, 1, nonce=NONCE)])
    s.step("write without a key", write(0, 1, text("x", 1)), [frame(0x300, NO_KEY, address=1)])
    s.step("key with block count 2", program_key(KEY, 2), [frame(0x100, GENERAL)])
    s.program()
    s.step("another key", program_key(OTHER), [frame(0x100, WRITE)])
    s.step("counter", get_counter(), [frame(0x200, nonce=NONCE)])
    s.step("counter with block count 0", get_counter(0), [frame(0x200, GENERAL, nonce=NONCE)])
    first = write(0, 7, text("first", 1))
    s.step("write a block", first, [frame(0x300, counter=1, address=7)])
    many = text("many", 4)
    s.step("write four", write(1, 6, many), [frame(0x300, counter=2, address=6)])
    s.step("the first write again", first, [frame(0x300, COUNT, counter=2, address=7)])
    s.step("read five, one too many", read(5, 5), [frame(0x400, GENERAL, 5, 5, nonce=NONCE)])
    blocks = [bytes(256)] + many[:3]
    s.step("read four", read(5, 4),
           [frame(0x400, OK, 4, 5, nonce=NONCE, data=d) for d in blocks])
    s.step("silent write", write(2, 0, text("silent", 1), result=False), [], 0)
    s.step("its result", [RESULT_READ], [frame(0x300, counter=3)])
    s.step("result with block count 0", [frame(5)], [frame(0x300, GENERAL)])
    return s


def refusals():
    s = Session("writes that are refused")
    s.program()
    data = text("refused", 2)
    answer = lambda result, address: [frame(0x300, result, address=address)]
    s.step("wrong counter", write(1, 3, data), answer(COUNT, 3))
    s.step("wrong key", write(1, 3, data, key=OTHER), answer(AUTH, 3))
    s.step("over the end", write(1, 511, data, key=OTHER), answer(ADDR, 511))
    s.step("at the end", write(0, 512, data[:1]), answer(ADDR, 512))
    s.step("far over it", write(0, 0xffff, data), answer(ADDR, 0xffff))
    s.step("five blocks", write(0, 0, text("five", 5)), answer(GENERAL, 0))
    s.step("no block", write(0, 512, data[:1], key=OTHER, blocks=0), answer(GENERAL, 512))
    s.step("fewer frames than said", write(0, 0, data, blocks=3), answer(GENERAL, 0))
    swapped = write(0, 0, data)
    s.step("frames in another order", [swapped[1], swapped[0], RESULT_READ], answer(AUTH, 0))
    s.step("counter is still", get_counter(), [frame(0x200, nonce=NONCE)])
    s.step("last block", write(0, 510, data), [frame(0x300, counter=1, address=510)])
    s.step("read over the end", read(511, 2),
           [frame(0x400, ADDR, 2, 511, nonce=NONCE)] * 2)
    s.step("read the last block", read(511, 1),
           [frame(0x400, OK, 1, 511, nonce=NONCE, data=data[1])])
    s.step("unknown request", [frame(6, blocks=1)], [frame(0, GENERAL)])
    s.step("no room", get_counter(), [], 0)
    return s


def end():
    s = Session("the end of the counter", counter=0xfffffffe)
    s.program()
    top = 0xffffffff
    s.step("last write", write(top - 1, 0, text("last", 1)), [frame(0x300, counter=top)])
    s.step("one more", write(top, 0, text("more", 1)), [frame(0x300, EXPIRED, counter=top)])
    s.step("with the wrong key and address", write(0, 600, text("more", 1), key=OTHER),
           [frame(0x300, EXPIRED, counter=top, address=600)])
    s.step("counter", get_counter(), [frame(0x200, counter=top, nonce=NONCE)])
    s.step("read", read(0, 1), [frame(0x400, OK, 1, nonce=NONCE, data=text("last", 1)[0])])
    return s


json.dump({"key": KEY.hex(), "sessions": [s().out for s in (life, refusals, end)]},
          sys.stdout, indent=2)
print()
