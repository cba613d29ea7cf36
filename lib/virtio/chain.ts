import type { MemoryRegion } from './guest-memory.ts';

/** The most descriptors a chain may have, whatever the table it stands in (as other back ends). */
export const MAX_CHAIN = 1024;
/** The most segments, however many regions its descriptors cross. */
export const MAX_SEGMENTS = 4 * MAX_CHAIN;

/** Segments there is room for before the record grows. */
const FEW_SEGMENTS = 128;

/**
 * The scratch record of one descriptor chain: its segments in order, readable ones first. A
 * descriptor that crosses two memory regions becomes two segments; one of length zero becomes none.
 * One instance serves a queue for its whole life.
 */
export class Chain {
  /** Identifies the chain to its queue. */
  head = 0;
  /** All segments. */
  count = 0;
  /** Segments the device may read: [0, readable). The others it may write: [readable, count). */
  readable = 0;
  /** Bytes in the readable segments. */
  readableBytes = 0;
  /** Bytes in the writable segments. */
  writableBytes = 0;
  readonly regions: MemoryRegion[] = [];
  /** Offset of each segment in its region. */
  offsets = new Uint32Array(FEW_SEGMENTS);
  /** Bytes in each segment, never 0. */
  lengths = new Uint32Array(FEW_SEGMENTS);

  reset(head: number): void {
    this.head = head;
    this.count = 0;
    this.readable = 0;
    this.readableBytes = 0;
    this.writableBytes = 0;
  }

  /** Add a segment; all readable ones before the first writable one. */
  add(region: MemoryRegion, offset: number, length: number, writable: boolean): void {
    const index = this.count++;
    if (index === this.offsets.length) this.#grow();
    this.regions[index] = region;
    this.offsets[index] = offset;
    this.lengths[index] = length;
    if (writable) {
      this.writableBytes += length;
    } else {
      this.readable = this.count;
      this.readableBytes += length;
    }
  }

  #grow(): void {
    const { offsets, lengths } = this;
    this.offsets = new Uint32Array(2 * offsets.length);
    this.offsets.set(offsets);
    this.lengths = new Uint32Array(2 * lengths.length);
    this.lengths.set(lengths);
  }

  /** Copy `length` bytes from byte `from` of the readable part into `into` at `at`; returns bytes copied. */
  copyOut(from: number, into: Uint8Array, at: number, length: number): number {
    let skip = from;
    let done = 0;
    for (let i = 0; i < this.readable && done < length; i++) {
      const have = this.lengths[i]! - skip;
      if (have <= 0) {
        skip = -have;
        continue;
      }
      const bytes = Math.min(have, length - done);
      copyBytes(into, at + done, this.regions[i]!.u8, this.offsets[i]! + skip, bytes);
      skip = 0;
      done += bytes;
    }
    return done;
  }

  /** Copy `length` bytes of `source` from `at` to byte `to` of the writable part; returns bytes copied. */
  copyIn(to: number, source: Uint8Array, at: number, length: number): number {
    let skip = to;
    let done = 0;
    for (let i = this.readable; i < this.count && done < length; i++) {
      const have = this.lengths[i]! - skip;
      if (have <= 0) {
        skip = -have;
        continue;
      }
      const bytes = Math.min(have, length - done);
      copyBytes(this.regions[i]!.u8, this.offsets[i]! + skip, source, at + done, bytes);
      skip = 0;
      done += bytes;
    }
    return done;
  }
}

/** From this length on a `set` is quicker than a loop, in spite of the view it allocates. */
const LONG_COPY = 64;

function copyBytes(
  to: Uint8Array,
  toAt: number,
  from: Uint8Array,
  fromAt: number,
  bytes: number,
): void {
  if (bytes >= LONG_COPY) {
    to.set(from.subarray(fromAt, fromAt + bytes), toAt);
    return;
  }
  for (let i = 0; i < bytes; i++) to[toAt + i] = from[fromAt + i]!;
}
