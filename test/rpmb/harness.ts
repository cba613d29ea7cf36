import { randomFillSync } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { deviceMemoryBytes, RpmbDevice } from '../../lib/rpmb/device.ts';
import {
  addressOf,
  BLOCK_BYTES,
  blockCountOf,
  counterOf,
  FRAME_BYTES,
  FrameField,
  type FrameParts,
  fieldOf,
  putFrame,
  RequestType,
  resultOf,
  typeOf,
} from '../../lib/rpmb/frame.ts';
import { signFrames, verifyFrames } from '../../lib/rpmb/mac.ts';
import type { Profile } from '../../lib/rpmb/rules.ts';
import { type CreateOptions, createState } from '../../lib/rpmb/state/create.ts';
import { dataOffset, type StateLayout } from '../../lib/rpmb/state/layout.ts';
import type { LiveState } from '../../lib/rpmb/state/live.ts';
import { loadState } from '../../lib/rpmb/state/open.ts';
import type { RpmbSystem } from '../../lib/rpmb/system.ts';
import type { StoreFactory } from '../../lib/store/store.ts';
import { BlockingStore } from '../../lib/store/sync-store.ts';
import { MemoryStore } from '../../lib/testing/memory-store.ts';

/** The addon's calls, as far as memory and locks can be had without it. */
export const system: RpmbSystem = {
  allocate: (length) => {
    const buffer = new ArrayBuffer(length);
    return { buffer, address: 4096, length, poisoned: false, unmap: () => {} };
  },
  fallocate: () => {},
  getRandom: (into) => void randomFillSync(into),
  lockFile: () => true,
  protectSecret: () => {},
};

export const KEY = Uint8Array.from({ length: 32 }, (_, i) => 0xa0 ^ (i * 7));
export const OTHER_KEY = KEY.map((byte) => byte ^ 0x55);

/** The smallest device there can be: 128 KiB, 512 blocks. */
export const SMALL = 128 * 1024;
export const SMALL_BLOCKS = 512;

/** A folder that goes away with the test process. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'vduse-rpmb-'));
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Where only the bytes of a file matter, no disk need be waited for. */
const QUICK = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();

/** The bytes of a new state file. */
export function makeState(options: CreateOptions = {}): Uint8Array {
  const folder = mkdtempSync(join(QUICK, 'vduse-rpmb-'));
  try {
    createState(join(folder, 'state'), { size: SMALL, ...options }, system);
    return new Uint8Array(readFileSync(join(folder, 'state')));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

export interface BenchOptions {
  readonly wrapKey?: Uint8Array;
  readonly profile?: Profile;
  /** The store a device gets; one in memory, over `bytes`, that completes at once unless given. */
  readonly store?: StoreFactory;
}

/** A device over a state in memory. */
export class Bench {
  readonly bytes: Uint8Array;
  readonly layout: StateLayout;
  readonly live: LiveState;
  readonly device: RpmbDevice;

  constructor(bytes: Uint8Array, options: BenchOptions = {}) {
    this.bytes = bytes;
    const inMemory: StoreFactory = (sink) => new MemoryStore(bytes, sink, { immediate: true });
    const { layout, live } = loadState(new BlockingStore(inMemory), options.wrapKey);
    this.layout = layout;
    this.live = live;
    const memory = { u8: new Uint8Array(deviceMemoryBytes(layout)), address: 4096 };
    this.device = new RpmbDevice({
      model: { layout, live: live.buffer },
      store: options.store ?? inMemory,
      memory,
      getRandom: system.getRandom,
      ...(options.profile === undefined ? {} : { profile: options.profile }),
    });
  }

  /** Send frames, get frames; on a store that completes at once. */
  send(request: Uint8Array, room = 1): Uint8Array {
    return sendTo(this.device, request, room);
  }

  /** The data area. */
  get data(): Uint8Array {
    return this.bytes.subarray(dataOffset(this.layout));
  }

  /** Serve the same bytes anew, as after a restart. */
  restart(options: BenchOptions = {}): Bench {
    this.device.close();
    return new Bench(this.bytes, options);
  }
}

export function sendTo(device: RpmbDevice, request: Uint8Array, room = 1): Uint8Array {
  const fits = Math.min(request.length, device.request.length);
  device.request.set(request.subarray(0, fits));
  if (fits < request.length) device.request.set(request.subarray(-FRAME_BYTES), fits - FRAME_BYTES);
  let answer: Uint8Array | undefined;
  device.execute(request.length / FRAME_BYTES, room, (frames) => {
    answer = device.response.slice(0, frames * FRAME_BYTES);
  });
  if (answer === undefined) throw new Error('not answered at once');
  return answer;
}

export function concat(...parts: Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts));
}

export function frame(parts: FrameParts): Uint8Array {
  const bytes = new Uint8Array(FRAME_BYTES);
  putFrame(bytes, 0, parts);
  return bytes;
}

export const resultRead = (blockCount = 1) => frame({ type: RequestType.ResultRead, blockCount });

export const NONCE = Uint8Array.from({ length: 16 }, (_, i) => 0x30 + i);

export const getCounter = (blockCount = 1) =>
  frame({ type: RequestType.GetWriteCounter, blockCount, nonce: NONCE });

export const programKey = (key: Uint8Array, blockCount = 1) =>
  frame({ type: RequestType.ProgramKey, blockCount, keyMac: key });

export const dataRead = (address: number, blockCount: number) =>
  frame({ type: RequestType.DataRead, address, blockCount, nonce: NONCE });

/** Blocks whose bytes tell which they are. */
export function pattern(blocks: number, seed: number): Uint8Array {
  return Uint8Array.from(
    { length: blocks * BLOCK_BYTES },
    (_, i) => (i * 31 + seed * 17 + (i >>> 8) * 5) & 0xff,
  );
}

export interface WriteParts {
  readonly key?: Uint8Array;
  readonly counter?: number;
  readonly address?: number;
  readonly data?: Uint8Array;
  /** Said in the frames, if other than there are. */
  readonly blockCount?: number;
}

/** An authenticated write; no RESULT_READ. */
export function dataWrite(parts: WriteParts = {}): Uint8Array {
  const { key = KEY, counter = 0, address = 0, data = pattern(1, 1) } = parts;
  const blocks = data.length / BLOCK_BYTES;
  const frames = new Uint8Array(blocks * FRAME_BYTES);
  for (let i = 0; i < blocks; i++) {
    putFrame(frames, i * FRAME_BYTES, {
      type: RequestType.DataWrite,
      blockCount: parts.blockCount ?? blocks,
      address,
      writeCounter: counter,
      data: data.subarray(i * BLOCK_BYTES, (i + 1) * BLOCK_BYTES),
    });
  }
  signFrames(key, frames, 0, blocks);
  return frames;
}

/** What a reply says, and whether its MAC is right. */
export function read(reply: Uint8Array, key: Uint8Array = KEY) {
  if (reply.length === 0) return { frames: 0 } as const;
  const frames = reply.length / FRAME_BYTES;
  const data = new Uint8Array(frames * BLOCK_BYTES);
  for (let i = 0; i < frames; i++) {
    const at = i * FRAME_BYTES;
    data.set(fieldOf(reply, at, FrameField.Data, BLOCK_BYTES), i * BLOCK_BYTES);
  }
  return {
    frames,
    type: typeOf(reply, 0),
    result: resultOf(reply, 0),
    counter: counterOf(reply, 0),
    address: addressOf(reply, 0),
    blockCount: blockCountOf(reply, 0),
    nonce: fieldOf(reply, 0, FrameField.Nonce, 16),
    mac: verifyFrames(key, reply, 0, frames),
    data,
  };
}
