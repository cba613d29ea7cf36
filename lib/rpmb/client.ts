import { capacityBlocks, type RpmbLimits } from './config.ts';
import type { Exchange } from './endpoint.ts';
import { RpmbError } from './errors.ts';
import {
  BLOCK_BYTES,
  counterOf,
  FRAME_BYTES,
  FrameField,
  fieldOf,
  MAC_BYTES,
  NONCE_BYTES,
  putFrame,
  RequestType,
  ResponseType,
} from './frame.ts';
import { checkKey } from './key-file.ts';
import { signFrames } from './mac.ts';
import { checkReply, ReplyError, type ReplyExpectation } from './reply.ts';
import type { GetRandom } from './state/wrap.ts';

export interface ClientSetup {
  /** The device, for messages. */
  readonly name: string;
  readonly limits: RpmbLimits;
  readonly exchange: Exchange;
  /** getrandom(2), each time anew: a nonce that repeats lets an old reply pass. */
  readonly getRandom: GetRandom;
}

export interface WriteOptions {
  /** Told each request's frames before they are sent, as they are sent. */
  readonly onRequest?: (frames: Uint8Array) => void;
}

/** What a device without limit is asked for at once. */
const CHUNK_BLOCKS = 32;

/**
 * A client of an RPMB: makes requests, believes no reply it has not checked. Without a key, replies
 * are read but their MAC isn't verified. Methods throw a `ReplyError` that names the failed check.
 */
export class RpmbClient {
  readonly #setup: ClientSetup;

  constructor(setup: ClientSetup) {
    this.#setup = setup;
  }

  get limits(): RpmbLimits {
    return this.#setup.limits;
  }

  /**
   * Program the key, once and for all. Not every device puts a MAC into its reply, and one that is
   * missing proves nothing: a counter read with the new key does.
   */
  async programKey(key: Uint8Array): Promise<void> {
    checkKey(key, 'the key');
    const request = new Uint8Array(2 * FRAME_BYTES);
    putFrame(request, 0, { type: RequestType.ProgramKey, blockCount: 1, keyMac: key });
    putFrame(request, FRAME_BYTES, { type: RequestType.ResultRead, blockCount: 1 });
    try {
      const reply = await this.#setup.exchange(request, 1);
      this.#check('program-key', reply, { type: ResponseType.ProgramKey });
      const mac = fieldOf(reply, 0, FrameField.KeyMac, MAC_BYTES);
      if (mac.some((byte) => byte !== 0)) {
        this.#check('program-key', reply, { type: ResponseType.ProgramKey, key });
      }
    } finally {
      request.fill(0);
    }
    await this.readCounter(key);
  }

  async readCounter(key?: Uint8Array): Promise<number> {
    const nonce = this.#nonce();
    const request = new Uint8Array(FRAME_BYTES);
    putFrame(request, 0, { type: RequestType.GetWriteCounter, blockCount: 1, nonce });
    const reply = await this.#setup.exchange(request, 1);
    this.#check('write counter', reply, { type: ResponseType.GetCounter, key, nonce });
    return counterOf(reply, 0);
  }

  /**
   * Write whole blocks from `address` on, in as many requests as the device's limits make it; each of
   * them is atomic, all together are not. Resolves with the counter afterwards.
   */
  async writeBlocks(
    key: Uint8Array,
    address: number,
    data: Uint8Array,
    options: WriteOptions = {},
  ): Promise<number> {
    const count = data.length / BLOCK_BYTES;
    this.#checkRange(address, count);
    const chunk = this.#setup.limits.maxWriteBlocks || CHUNK_BLOCKS;
    let counter = await this.readCounter(key);
    for (let done = 0; done < count; done += chunk) {
      const blocks = Math.min(chunk, count - done);
      const part = data.subarray(done * BLOCK_BYTES, (done + blocks) * BLOCK_BYTES);
      const request = makeWrite(key, counter, address + done, part);
      options.onRequest?.(request);
      const reply = await this.#setup.exchange(request, 1);
      counter++;
      const what = done === 0 ? 'write' : `write, after ${done} of ${count} blocks were written`;
      this.#check(what, reply, {
        type: ResponseType.DataWrite,
        key,
        address: address + done,
        counter,
      });
    }
    return counter;
  }

  async readBlocks(address: number, count: number, key?: Uint8Array): Promise<Uint8Array> {
    this.#checkRange(address, count);
    const data = new Uint8Array(count * BLOCK_BYTES);
    const chunk = this.#setup.limits.maxReadBlocks || CHUNK_BLOCKS;
    for (let done = 0; done < count; done += chunk) {
      const blocks = Math.min(chunk, count - done);
      const reply = await this.#readChunk(address + done, blocks, key);
      for (let i = 0; i < blocks; i++) {
        const block = fieldOf(reply, i * FRAME_BYTES, FrameField.Data, BLOCK_BYTES);
        data.set(block, (done + i) * BLOCK_BYTES);
      }
    }
    return data;
  }

  async #readChunk(address: number, blocks: number, key?: Uint8Array): Promise<Uint8Array> {
    const nonce = this.#nonce();
    const request = new Uint8Array(FRAME_BYTES);
    putFrame(request, 0, { type: RequestType.DataRead, blockCount: blocks, address, nonce });
    const reply = await this.#setup.exchange(request, blocks);
    this.#check('read', reply, {
      type: ResponseType.DataRead,
      frames: blocks,
      key,
      nonce,
      address,
      blockCount: blocks,
    });
    return reply;
  }

  #nonce(): Uint8Array {
    const nonce = new Uint8Array(NONCE_BYTES);
    this.#setup.getRandom(nonce);
    return nonce;
  }

  #check(what: string, reply: Uint8Array, expected: ReplyExpectation): void {
    const fault = checkReply(reply, expected);
    if (fault === undefined) return;
    throw new ReplyError(`${this.#setup.name}: ${what}`, fault, reply);
  }

  #checkRange(address: number, count: number): void {
    const blocks = capacityBlocks(this.#setup.limits);
    const whole = Number.isInteger(address) && Number.isInteger(count) && address >= 0 && count > 0;
    if (whole && address + count <= blocks) return;
    const why = whole
      ? `blocks ${address} to ${address + count - 1} are not all there`
      : `${count} blocks at ${address} are no range`;
    const remedy = `give whole blocks of ${BLOCK_BYTES} bytes from 0 to ${blocks - 1}`;
    throw new RpmbError('ADDRESS', this.#setup.name, why, remedy);
  }
}

/** An authenticated write of whole blocks, with a RESULT_READ behind it. */
export function makeWrite(
  key: Uint8Array,
  writeCounter: number,
  address: number,
  data: Uint8Array,
): Uint8Array {
  const blockCount = data.length / BLOCK_BYTES;
  const frames = new Uint8Array((blockCount + 1) * FRAME_BYTES);
  for (let i = 0; i < blockCount; i++) {
    putFrame(frames, i * FRAME_BYTES, {
      type: RequestType.DataWrite,
      blockCount,
      address,
      writeCounter,
      data: data.subarray(i * BLOCK_BYTES, (i + 1) * BLOCK_BYTES),
    });
  }
  signFrames(key, frames, 0, blockCount);
  const last = blockCount * FRAME_BYTES;
  putFrame(frames, last, { type: RequestType.ResultRead, blockCount: 1 });
  return frames;
}
