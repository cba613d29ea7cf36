import type { Extent, Memory } from '../../lib/native/io-table.ts';
import { storeInfo } from '../../lib/rpmb/state/file.ts';
import type { Store, StoreInfo, StoreSink } from '../../lib/store/store.ts';

/** What reached a disk, in order; `begin` and `ack` are marks of the test. */
export type DiskEvent =
  | { readonly kind: 'write'; readonly offset: number; readonly bytes: Uint8Array }
  | { readonly kind: 'sync' }
  | { readonly kind: 'begin' }
  | { readonly kind: 'ack' };

/** A store that keeps `bytes` as the page cache would, and notes every write and sync. */
export class RecordingStore implements Store {
  readonly info: StoreInfo;
  readonly #bytes: Uint8Array;
  readonly #events: DiskEvent[];
  readonly #sink: StoreSink;
  readonly #syncFails: () => boolean;
  #token = 0;
  #writes = false;
  #offset = 0;
  #left = 0;
  #pieces: Uint8Array[] = [];

  constructor(
    bytes: Uint8Array,
    events: DiskEvent[],
    sink: StoreSink,
    syncFails: () => boolean = () => false,
  ) {
    this.info = storeInfo('recorded', bytes.length, false);
    this.#bytes = bytes;
    this.#events = events;
    this.#sink = sink;
    this.#syncFails = syncFails;
  }

  read(token: number, { offset, length }: Extent): void {
    this.#begin(token, false, offset, length);
  }

  write(token: number, { offset, length }: Extent): void {
    this.#begin(token, true, offset, length);
  }

  addMemory(memory: Memory, offset: number, length: number): void {
    this.#pieces.push(memory.u8.subarray(offset, offset + length));
    this.#left -= length;
    if (this.#left === 0) this.#move();
  }

  flush(token: number): void {
    if (this.#syncFails()) {
      this.#sink.completed(token, -5);
      return;
    }
    this.#events.push({ kind: 'sync' });
    this.#sink.completed(token, 0);
  }

  discard(): void {
    throw new Error('not asked of a state');
  }

  writeZeroes(): void {
    throw new Error('not asked of a state');
  }

  close(): void {}

  #begin(token: number, writes: boolean, offset: number, length: number): void {
    this.#token = token;
    this.#writes = writes;
    this.#offset = offset;
    this.#left = length;
    this.#pieces = [];
  }

  #move(): void {
    let at = this.#offset;
    for (const piece of this.#pieces) {
      if (this.#writes) this.#bytes.set(piece, at);
      else piece.set(this.#bytes.subarray(at, at + piece.length));
      at += piece.length;
    }
    if (this.#writes) {
      const bytes = this.#bytes.slice(this.#offset, at);
      this.#events.push({ kind: 'write', offset: this.#offset, bytes });
    }
    this.#sink.completed(this.#token, at - this.#offset);
  }
}

const SECTOR = 512;
/** From so many images on, every sector has its turn to be the odd one. */
const MANY = 100;
/** Where a sector may be torn: inside what a slot or a block says, and between. */
const TEARS = [100, 256, 400];

/** A sector that was written since the last sync, and all it may hold after a crash. */
export interface Unsettled {
  readonly offset: number;
  /** The first is what is durable. */
  readonly contents: readonly Uint8Array[];
}

/** Apply the writes of `events` that a sync made durable to `base`; what is left is unsettled. */
export function settle(
  base: Uint8Array,
  events: readonly DiskEvent[],
): { durable: Uint8Array; unsettled: Unsettled[] } {
  const durable = base.slice();
  const synced = events.findLastIndex(({ kind }) => kind === 'sync');
  const versions = new Map<number, Uint8Array[]>();
  events.forEach((event, i) => {
    if (event.kind !== 'write') return;
    if (i < synced) durable.set(event.bytes, event.offset);
    else noteVersions(durable, versions, event.offset, event.bytes);
  });
  const unsettled = [...versions].map(([offset, list]) => ({ offset, contents: possible(list) }));
  return { durable, unsettled: unsettled.filter(({ contents }) => contents.length > 1) };
}

/** Cut a write into sectors; each gets one version more. */
function noteVersions(
  durable: Uint8Array,
  versions: Map<number, Uint8Array[]>,
  offset: number,
  bytes: Uint8Array,
): void {
  const end = offset + bytes.length;
  for (let at = offset - (offset % SECTOR); at < end; at += SECTOR) {
    const list = versions.get(at) ?? [durable.slice(at, at + SECTOR)];
    const next = list.at(-1)!.slice();
    const from = Math.max(at, offset);
    next.set(bytes.subarray(from - offset, Math.min(end, at + SECTOR) - offset), from - at);
    list.push(next);
    versions.set(at, list);
  }
}

/** Every version that was ever there (a page may be written back at any time), and torn ones. */
function possible(versions: readonly Uint8Array[]): Uint8Array[] {
  const all: Uint8Array[] = [];
  const add = (content: Uint8Array) => {
    if (!all.some((other) => Buffer.compare(other, content) === 0)) all.push(content);
  };
  for (const version of versions) add(version);
  for (let i = 1; i < versions.length; i++) {
    for (const cut of TEARS) {
      add(torn(versions[i]!, versions[i - 1]!, cut));
      add(torn(versions[i - 1]!, versions[i]!, cut));
    }
  }
  return all;
}

function torn(first: Uint8Array, second: Uint8Array, cut: number): Uint8Array {
  const content = second.slice();
  content.set(first.subarray(0, cut));
  return content;
}

/** Mulberry32: the same numbers each time for the same seed. */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = state;
    x = Math.imul(x ^ (x >>> 15), x | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * What the disk may hold after a crash: all of them up to `limit`, else all lost, all kept, `limit`
 * drawn at random, and for a large `limit` those in which one sector differs from all the others.
 * The image is only lent.
 */
export function* crashImages(
  durable: Uint8Array,
  unsettled: readonly Unsettled[],
  limit: number,
  random: () => number,
): Generator<Uint8Array> {
  const image = durable.slice();
  const choose = (choices: readonly number[]) => {
    unsettled.forEach(({ offset, contents }, i) => {
      image.set(contents[choices[i]!]!, offset);
    });
    return image;
  };
  const counts = unsettled.map(({ contents }) => contents.length);
  const total = counts.reduce((product, count) => product * count, 1);
  if (total <= limit) {
    for (let number = 0; number < total; number++) {
      let rest = number;
      yield choose(
        counts.map((count) => {
          const choice = rest % count;
          rest = Math.floor(rest / count);
          return choice;
        }),
      );
    }
    return;
  }
  for (const others of ['lost', 'kept']) {
    for (let odd = -1; odd < (limit < MANY ? 0 : counts.length); odd++) {
      for (let choice = 0; choice < (odd < 0 ? 1 : counts[odd]!); choice++) {
        // The newest whole version comes last before the torn ones; 1 is it where there is one write.
        yield choose(counts.map((_, i) => (i === odd ? choice : others === 'lost' ? 0 : 1)));
      }
    }
  }
  for (let n = 0; n < limit; n++) {
    yield choose(counts.map((count) => Math.floor(random() * count)));
  }
}
