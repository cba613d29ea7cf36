import { makeWrite } from '../client.ts';
import { capacityBlocks, type RpmbLimits } from '../config.ts';
import type { Exchange } from '../endpoint.ts';
import {
  BLOCK_BYTES,
  counterOf,
  FRAME_BYTES,
  FrameField,
  type FrameParts,
  fieldOf,
  MAX_COUNTER,
  NONCE_BYTES,
  putFrame,
  RequestType,
  ResponseType,
  Result,
  resultName,
  resultOf,
} from '../frame.ts';
import { checkReply, type ReplyExpectation } from '../reply.ts';
import type { Profile } from '../rules.ts';
import type { GetRandom } from '../state/wrap.ts';

/** Thrown by a clause: the device does otherwise. */
export class Broken extends Error {}

/** Thrown by a clause: the device's state, or what was given, can't show it. */
export class NotShown extends Error {}

/** Thrown when a chain does not come back: no more can be learnt. */
export class Gone extends Error {}

export interface ProbeSetup {
  readonly exchange: Exchange;
  readonly limits: RpmbLimits;
  readonly profile: Profile;
  readonly key: Uint8Array | undefined;
  readonly getRandom: GetRandom;
  readonly timeoutMs: number;
}

/** What the tester looks at the device with. */
export class Probe {
  readonly limits: RpmbLimits;
  readonly blocks: number;
  readonly profile: Profile;
  /** The device has a key; not necessarily the one given. */
  programmed = false;
  /** The reply to the PROGRAM_KEY of this run. */
  keyReply: Uint8Array | undefined;
  /** A reply held the key. */
  keyTold = false;
  readonly #setup: ProbeSetup;

  constructor(setup: ProbeSetup) {
    this.#setup = setup;
    this.limits = setup.limits;
    this.blocks = capacityBlocks(setup.limits);
    this.profile = setup.profile;
  }

  /** The key to the device. Throws NotShown when there is none. */
  get key(): Uint8Array {
    if (this.#setup.key === undefined) throw new NotShown('needs the key');
    return this.#setup.key;
  }

  get hasKey(): boolean {
    return this.#setup.key !== undefined;
  }

  /** A block count that is wrong where 1 is due. */
  get wrongOne(): number {
    return this.profile.zeroBlockCount ? 2 : 0;
  }

  needKeyed(): Uint8Array {
    if (!this.programmed) throw new NotShown('the device has no key');
    return this.key;
  }

  needUnkeyed(): void {
    if (this.programmed) throw new NotShown('the device has its key already');
  }

  /** Send one chain. Throws Gone when it does not come back, Broken when more came than fits. */
  async send(request: Uint8Array, room = 1): Promise<Uint8Array> {
    let timer: NodeJS.Timeout | undefined;
    const { exchange, timeoutMs } = this.#setup;
    const late = new Promise<never>((_resolve, reject) => {
      timer = setTimeout(() => reject(new Error(`no answer within ${timeoutMs} ms`)), timeoutMs);
    });
    let reply: Uint8Array;
    try {
      reply = await Promise.race([exchange(request, room), late]);
    } catch (error) {
      throw new Gone((error as Error).message);
    } finally {
      clearTimeout(timer);
    }
    const { key } = this.#setup;
    const bytes = Buffer.from(reply.buffer, reply.byteOffset, reply.length);
    if (key !== undefined && bytes.indexOf(key) >= 0) {
      this.keyTold = true;
    }
    if (reply.length > room * FRAME_BYTES) {
      throw new Broken(`${reply.length} bytes were written where ${room * FRAME_BYTES} fit`);
    }
    return reply;
  }

  /** Send a PROGRAM_KEY with a RESULT_READ behind it. */
  async sendKey(key: Uint8Array, blockCount = 1): Promise<Uint8Array> {
    const frames = keyFrames(key, blockCount);
    try {
      return await this.send(frames);
    } finally {
      frames.fill(0);
    }
  }

  /** Throws Broken unless the reply is as expected; `what` says what was sent. */
  expect(what: string, reply: Uint8Array, expected: ReplyExpectation): void {
    const fault = checkReply(reply, expected);
    if (fault === undefined) return;
    throw new Broken(`${what}: ${fault.check}: ${fault.text}`);
  }

  /** Throws Broken if the reply says OK, or is no whole frames. */
  expectRefusal(what: string, reply: Uint8Array): void {
    if (reply.length % FRAME_BYTES !== 0) throw new Broken(`${what}: ${reply.length} bytes came`);
    if (reply.length > 0 && resultOf(reply, 0) === Result.Ok) throw new Broken(`${what}: OK`);
  }

  nonce(): Uint8Array {
    const nonce = new Uint8Array(NONCE_BYTES);
    this.#setup.getRandom(nonce);
    return nonce;
  }

  random(blocks: number): Uint8Array {
    const data = new Uint8Array(blocks * BLOCK_BYTES);
    this.#setup.getRandom(data);
    return data;
  }

  /** The counter, from a reply that is right in all. */
  async counter(): Promise<number> {
    const nonce = this.nonce();
    const reply = await this.send(
      makeFrame({ type: RequestType.GetWriteCounter, blockCount: 1, nonce }),
    );
    const result =
      this.profile.expiryBit && counterAt(reply) === MAX_COUNTER ? Result.WriteCounterExpired : 0;
    const type = ResponseType.GetCounter;
    this.expect('GET_WRITE_COUNTER', reply, { type, result, key: this.needKeyed(), nonce });
    return counterOf(reply, 0);
  }

  /** Blocks, from a reply that is right in all. */
  async read(address: number, blocks: number): Promise<Uint8Array> {
    const nonce = this.nonce();
    const reply = await this.send(readFrame(address, blocks, nonce), blocks);
    const what = `DATA_READ of ${blocks} at ${address}`;
    // An expired counter is a bit of every result there.
    const bit = reply.length >= FRAME_BYTES ? resultOf(reply, 0) & Result.WriteCounterExpired : 0;
    this.expect(what, reply, {
      type: ResponseType.DataRead,
      frames: blocks,
      result: this.profile.expiryBit ? bit : Result.Ok,
      key: this.needKeyed(),
      nonce,
      address,
      blockCount: blocks,
    });
    const data = new Uint8Array(blocks * BLOCK_BYTES);
    for (let i = 0; i < blocks; i++) {
      data.set(fieldOf(reply, i * FRAME_BYTES, FrameField.Data, BLOCK_BYTES), i * BLOCK_BYTES);
    }
    return data;
  }

  /** Throws NotShown unless `writes` may succeed and leave a rest for the other clauses. */
  async needWrites(writes: number): Promise<number> {
    const counter = await this.counter();
    if (MAX_COUNTER - counter >= writes + EXPIRY_WRITES) return counter;
    throw new NotShown(`the counter is at ${counter}, which leaves too few writes`);
  }

  /** A write that must succeed; returns the counter after it. */
  async write(counter: number, address: number, data: Uint8Array): Promise<number> {
    const reply = await this.send(makeWrite(this.key, counter, address, data));
    const what = `DATA_WRITE of ${data.length / BLOCK_BYTES} at ${address}`;
    const type = ResponseType.DataWrite;
    this.expect(what, reply, { type, key: this.key, address, counter: counter + 1 });
    return counter + 1;
  }

  /** Send a write that must be refused with `result`, and look whether it was harmless. */
  async refused(what: string, request: Uint8Array, result: number): Promise<void> {
    const before = await this.#look();
    const reply = await this.send(request);
    const type = ResponseType.DataWrite;
    const after = await this.#look();
    if (after.counter !== before.counter) {
      throw new Broken(`${what}: the counter went from ${before.counter} to ${after.counter}`);
    }
    if (Buffer.compare(after.data, before.data) !== 0) throw new Broken(`${what}: it was written`);
    this.expect(what, reply, { type, result, key: this.key, counter: before.counter });
  }

  async #look(): Promise<{ counter: number; data: Uint8Array }> {
    const data = new Uint8Array(2 * BLOCK_BYTES);
    data.set(await this.read(SCRATCH, 1));
    data.set(await this.read(this.blocks - 1, 1), BLOCK_BYTES);
    return { counter: await this.counter(), data };
  }

  /** Throws Broken when the device answers no more. */
  async alive(what: string): Promise<void> {
    const nonce = this.nonce();
    const reply = await this.send(
      makeFrame({ type: RequestType.GetWriteCounter, blockCount: 1, nonce }),
    );
    if (reply.length === FRAME_BYTES) return;
    throw new Broken(`after ${what}: a counter read got ${reply.length} bytes`);
  }
}

/** With so few writes left, a run is about the end of the counter and nothing else. */
export const EXPIRY_WRITES = 4;

/** Where the destructive clauses write; the last block too. */
export const SCRATCH = 0;

export function makeFrame(parts: FrameParts): Uint8Array {
  const frame = new Uint8Array(FRAME_BYTES);
  putFrame(frame, 0, parts);
  return frame;
}

export function readFrame(address: number, blockCount: number, nonce?: Uint8Array): Uint8Array {
  const given = nonce === undefined ? {} : { nonce };
  return makeFrame({ type: RequestType.DataRead, address, blockCount, ...given });
}

function keyFrames(key: Uint8Array, blockCount: number): Uint8Array {
  const frames = new Uint8Array(2 * FRAME_BYTES);
  putFrame(frames, 0, { type: RequestType.ProgramKey, blockCount, keyMac: key });
  putFrame(frames, FRAME_BYTES, { type: RequestType.ResultRead, blockCount: 1 });
  return frames;
}

function counterAt(reply: Uint8Array): number {
  return reply.length < FRAME_BYTES ? 0 : counterOf(reply, 0);
}

/** The result of a reply in words. */
export function said(reply: Uint8Array): string {
  return reply.length < FRAME_BYTES ? `${reply.length} bytes` : resultName(resultOf(reply, 0));
}
