import { createHmac, hash, timingSafeEqual } from 'node:crypto';
import { hmac } from '@noble/hashes/hmac.js';
import { sha256 } from '@noble/hashes/sha2.js';
import { FRAME_BYTES, FrameField, KEY_BYTES, MAC_BYTES, MAC_FROM } from './frame.ts';

/**
 * The MAC of `count` frames from `at` on, into `into`: HMAC-SHA-256 over bytes 228 … 511 of each, one
 * after another (virtio 1.3 §5.12.6.1, eMMC 5.1 §6.6.22).
 */
export type MacFunction = (
  key: Uint8Array,
  frames: Uint8Array,
  at: number,
  count: number,
  into: Uint8Array,
) => void;

const HASH_BLOCK_BYTES = 64;
const FRAME_MAC_BYTES = FRAME_BYTES - MAC_FROM;

/** What the two hashes of an HMAC over one frame are given (RFC 2104 §2). */
const inner = new Uint8Array(HASH_BLOCK_BYTES + FRAME_MAC_BYTES);
const outer = new Uint8Array(HASH_BLOCK_BYTES + MAC_BYTES);

/**
 * OpenSSL's: 6.5 µs for 32 frames, measured on Node 20. One frame, which is what a write of a block
 * has, goes in two one-shot hashes: 2.2 µs instead of 3.1, and where writes are rare, so that nothing
 * of it is compiled or in a cache, 45 µs instead of 65. An `Hmac` is a stream, and as dear to make.
 */
export const openSslMac: MacFunction = (key, frames, at, count, into) => {
  if (count === 1) {
    macOfOne(key, frames, at, into);
    return;
  }
  const mac = createHmac('sha256', key);
  for (let i = 0, frame = at; i < count; i++, frame += FRAME_BYTES) {
    mac.update(frames.subarray(frame + MAC_FROM, frame + FRAME_BYTES));
  }
  const digest = mac.digest();
  into.set(digest);
  digest.fill(0);
};

function macOfOne(key: Uint8Array, frames: Uint8Array, at: number, into: Uint8Array): void {
  for (let i = 0; i < HASH_BLOCK_BYTES; i++) {
    const byte = i < KEY_BYTES ? key[i]! : 0;
    inner[i] = byte ^ 0x36;
    outer[i] = byte ^ 0x5c;
  }
  inner.set(frames.subarray(at + MAC_FROM, at + FRAME_BYTES), HASH_BLOCK_BYTES);
  outer.set(hash('sha256', inner, 'buffer'), HASH_BLOCK_BYTES);
  const digest = hash('sha256', outer, 'buffer');
  into.set(digest);
  digest.fill(0);
  inner.fill(0, 0, HASH_BLOCK_BYTES);
  outer.fill(0);
}

/** JavaScript's own: 5 µs and 44 µs. The second opinion of the tests. */
export const nobleMac: MacFunction = (key, frames, at, count, into) => {
  const mac = hmac.create(sha256, key);
  for (let i = 0, frame = at; i < count; i++, frame += FRAME_BYTES) {
    mac.update(frames.subarray(frame + MAC_FROM, frame + FRAME_BYTES));
  }
  const digest = mac.digest();
  into.set(digest);
  digest.fill(0);
};

export const computeMac: MacFunction = openSslMac;

/** Where the MAC of `count` frames stands: in the last. */
function macOf(frames: Uint8Array, at: number, count: number): Uint8Array {
  const from = at + (count - 1) * FRAME_BYTES + FrameField.KeyMac;
  return frames.subarray(from, from + MAC_BYTES);
}

/** Put the MAC of `count` frames from `at` on into the last of them. */
export function signFrames(key: Uint8Array, frames: Uint8Array, at: number, count: number): void {
  computeMac(key, frames, at, count, macOf(frames, at, count));
}

/** Whether the last of `count` frames from `at` on holds their MAC; takes as long for any wrong one. */
export function verifyFrames(
  key: Uint8Array,
  frames: Uint8Array,
  at: number,
  count: number,
): boolean {
  const right = new Uint8Array(MAC_BYTES);
  computeMac(key, frames, at, count, right);
  const equal = timingSafeEqual(right, macOf(frames, at, count));
  // Of a request that was refused it is what a forger lacks.
  right.fill(0);
  return equal;
}
