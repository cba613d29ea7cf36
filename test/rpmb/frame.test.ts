import * as crypto from 'node:crypto';
import { randomFillSync } from 'node:crypto';
import fc from 'fast-check';
import t from 'tap';
import {
  addressOf,
  blockCountOf,
  counterOf,
  FRAME_BYTES,
  FrameField,
  fieldOf,
  putFrame,
  Result,
  resultName,
  resultOf,
  typeOf,
} from '../../lib/rpmb/frame.ts';
import { nobleMac, openSslMac, signFrames, verifyFrames } from '../../lib/rpmb/mac.ts';
import { KEY } from './harness.ts';

t.test('§5.12.6.1: fields stand where the specification puts them, big-endian', async (t) => {
  const frames = new Uint8Array(3 * FRAME_BYTES).fill(0xee);
  putFrame(frames, FRAME_BYTES, {
    type: 0x0102,
    result: 0x0304,
    blockCount: 0x0506,
    address: 0x0708,
    writeCounter: 0x090a0b0c,
    nonce: new Uint8Array(16).fill(0x22),
    data: new Uint8Array(256).fill(0x33),
    keyMac: new Uint8Array(32).fill(0x44),
  });
  const expected = Buffer.concat([
    Buffer.alloc(FRAME_BYTES, 0xee),
    Buffer.alloc(196, 0),
    Buffer.alloc(32, 0x44),
    Buffer.alloc(256, 0x33),
    Buffer.alloc(16, 0x22),
    Buffer.from('090a0b0c07080506' + '03040102', 'hex'),
    Buffer.alloc(FRAME_BYTES, 0xee),
  ]);
  t.same(Buffer.from(frames), expected);
});

t.test('what is put into a frame is read back from it', async (t) => {
  fc.assert(
    fc.property(
      fc.record({
        type: fc.integer({ min: 0, max: 0xffff }),
        result: fc.integer({ min: 0, max: 0xffff }),
        blockCount: fc.integer({ min: 0, max: 0xffff }),
        address: fc.integer({ min: 0, max: 0xffff }),
        writeCounter: fc.integer({ min: 0, max: 0xffffffff }),
      }),
      fc.integer({ min: 0, max: 3 }),
      (parts, index) => {
        const frames = new Uint8Array(4 * FRAME_BYTES);
        const at = index * FRAME_BYTES;
        putFrame(frames, at, parts);
        return (
          typeOf(frames, at) === parts.type &&
          resultOf(frames, at) === parts.result &&
          blockCountOf(frames, at) === parts.blockCount &&
          addressOf(frames, at) === parts.address &&
          counterOf(frames, at) === parts.writeCounter
        );
      },
    ),
  );
  t.pass();
});

t.test('the two implementations of the MAC agree', async (t) => {
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 32, maxLength: 32 }),
      fc.integer({ min: 1, max: 5 }),
      fc.integer({ min: 0, max: 2 }),
      (key, count, first) => {
        const frames = randomFillSync(new Uint8Array(8 * FRAME_BYTES));
        const one = new Uint8Array(32);
        const two = new Uint8Array(32);
        openSslMac(key, frames, first * FRAME_BYTES, count, one);
        nobleMac(key, frames, first * FRAME_BYTES, count, two);
        return Buffer.compare(one, two) === 0;
      },
    ),
    { numRuns: 60 },
  );
  t.pass();
});

t.test('the MAC covers bytes 228 … 511 of every frame, and nothing else', async (t) => {
  const frames = randomFillSync(new Uint8Array(3 * FRAME_BYTES));
  signFrames(KEY, frames, 0, 3);
  t.ok(verifyFrames(KEY, frames, 0, 3));
  const mac = fieldOf(frames, 2 * FRAME_BYTES, FrameField.KeyMac, 32).slice();
  for (let at = 0; at < frames.length; at++) {
    const covered = at % FRAME_BYTES >= 228;
    const inMac = at >= 2 * FRAME_BYTES + 196 && at < 2 * FRAME_BYTES + 228;
    frames[at]! ^= 0x10;
    if (verifyFrames(KEY, frames, 0, 3) !== !(covered || inMac)) t.fail(`byte ${at}`);
    frames[at]! ^= 0x10;
  }
  t.same(fieldOf(frames, 2 * FRAME_BYTES, FrameField.KeyMac, 32), mac);
  t.notOk(verifyFrames(KEY, frames, 0, 2), 'it stands in the last frame');
  t.notOk(
    verifyFrames(
      KEY.map((byte) => byte ^ 1),
      frames,
      0,
      3,
    ),
    'another key',
  );
});

t.test('trap: a MAC is compared in constant time', async (t) => {
  const compared: [number, number][] = [];
  const { verifyFrames: spied } = await t.mockImport<typeof import('../../lib/rpmb/mac.ts')>(
    '../../lib/rpmb/mac.ts',
    {
      'node:crypto': {
        ...crypto,
        timingSafeEqual: (a: Uint8Array, b: Uint8Array) => {
          compared.push([a.length, b.length]);
          return crypto.timingSafeEqual(a, b);
        },
      },
    },
  );
  const frame = new Uint8Array(FRAME_BYTES);
  t.notOk(spied(KEY, frame, 0, 1));
  signFrames(KEY, frame, 0, 1);
  t.ok(spied(KEY, frame, 0, 1));
  t.same(
    compared,
    [
      [32, 32],
      [32, 32],
    ],
    'whole MACs, by timingSafeEqual alone',
  );
});

t.test('results have names', async (t) => {
  t.equal(resultName(Result.Ok), 'OK (0x0000)');
  t.equal(resultName(Result.NoAuthKey), 'NO_AUTH_KEY (0x0007)');
  t.equal(resultName(Result.WriteCounterExpired), 'WRITE_COUNTER_EXPIRED (0x0080)');
  t.equal(resultName(0x85), 'WRITE_FAILURE, counter expired (0x0085)');
  t.match(resultName(0x1234), /unknown result.*0x1234/);
});
