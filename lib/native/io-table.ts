import type { Addon, Mapping } from './addon.ts';

/** What a row asks for. The numbers are shared with native/io.cc. */
export const IoKind = { Read: 0, Write: 1, Sync: 2, Allocate: 3 } as const;
export type IoKind = (typeof IoKind)[keyof typeof IoKind];

/** fallocate(2) modes (linux/falloc.h). */
export const FALLOC_FL_KEEP_SIZE = 1;
export const FALLOC_FL_PUNCH_HOLE = 2;
export const FALLOC_FL_ZERO_RANGE = 16;

/** preadv2(2) flag: fail with EAGAIN rather than wait for the disk. */
export const RWF_NOWAIT = 8;

/** Row flags. */
export const IoFlag = {
  /** The operation may wait for a device: never run it on the thread that drives queues. */
  MayBlock: 1,
  /** If it is a copy that waits for a page to be read, it counts in `slowCopies`. */
  Watch: 2,
} as const;

/**
 * Struct io_row of native/io.cc, 64 bytes, little-endian:
 * u32 kind@0, i32 fd@4, u64 offset@8, u64 length@16, u32 firstVector@24, u32 vectorCount@28,
 * u32 rwFlags@32, i32 result@36, u32 user@40, u32 flags@44, u32 owner@48, u32 token@52, u64 map@56 (or u32 mode).
 * `map` is where the file's first byte is mapped, 0 for nowhere; fallocate has its mode there.
 * `user` is the engine's own word (it comes back from the pool); `owner` and `token` are the submitter's.
 */
export const ROW_BYTES = 64;
export const ROW_WORDS = ROW_BYTES / 4;
/** Struct iovec: u64 base, u64 length. */
export const VECTOR_WORDS = 4;

export const ROW = {
  kind: 0,
  fd: 1,
  offset: 2,
  length: 4,
  firstVector: 6,
  vectorCount: 7,
  rwFlags: 8,
  result: 9,
  user: 10,
  flags: 11,
  owner: 12,
  token: 13,
  map: 14,
  mode: 14,
} as const;

const TWO_32 = 2 ** 32;

/** No index is larger; told so, V8 need not check each sum with one for passing 2^31. */
const MAX_INDEX = 2 ** 24 - 1;

/** Memory that an I/O may read or write: bytes for JavaScript, their address for the kernel. */
export interface Memory {
  readonly u8: Uint8Array;
  /** Where `u8[0]` lies in this process. */
  readonly address: number;
}

/**
 * A run of bytes of a file, each number at most 2^53-1. Whoever is given one looks at it during the
 * call only, and its owner uses it again. An object, since a number from 2^31 on that is passed by value
 * is allocated whenever the call is not inlined: once a request on any large disk.
 */
export interface Extent {
  readonly offset: number;
  readonly length: number;
}

/** Where a file's first byte is mapped, in words as a row has them. */
export interface MapAddress {
  readonly low: number;
  readonly high: number;
}

/** Who pushed a row, and is told of its end. */
export interface RowOwner {
  /** `result` is the byte count (reads, writes), 0, or -errno. */
  rowCompleted(token: number, result: number): void;
}

/**
 * The engine as a store sees it: a table to push rows to, and a number under which completions come
 * back. The engine submits what is in the table at the end of its turn.
 */
export interface IoPort {
  readonly table: IoTable;
  register(owner: RowOwner): number;
  unregister(owner: number): void;
  /** Complete `token` with 0 after at least `microseconds`, a quarter of an hour at most. */
  after(owner: number, token: number, microseconds: number): void;
}

/**
 * The table through which work reaches the kernel: rows and their I/O vectors, both in memory that
 * native code reads in place. It grows by doubling and is emptied after each batch, so in the
 * steady state it allocates nothing.
 */
export class IoTable {
  readonly #addon: Addon;
  #rowMemory: Mapping;
  #vectorMemory: Mapping;
  #rows: Int32Array;
  #vectors: Uint32Array;
  #rowCapacity: number;
  #vectorCapacity: number;
  /** Rows in the table. */
  count = 0;
  #vectorCount = 0;
  /** Memory that was outgrown: the kernel may still be told of its addresses until `clear`. */
  readonly #outgrown: Mapping[] = [];

  /**
   * Room for some full batches: growing throws away the compiled code that pushes rows. Pages that are
   * never used cost nothing.
   */
  constructor(addon: Addon, rowCapacity = 1024, vectorCapacity = 2048) {
    this.#addon = addon;
    this.#rowCapacity = rowCapacity;
    this.#vectorCapacity = vectorCapacity;
    this.#rowMemory = addon.allocate(rowCapacity * ROW_BYTES);
    this.#vectorMemory = addon.allocate(vectorCapacity * 16);
    this.#rows = new Int32Array(this.#rowMemory.buffer);
    this.#vectors = new Uint32Array(this.#vectorMemory.buffer);
  }

  /** The rows as 32-bit words (ROW gives the fields); valid until the next `push`. */
  get rows(): Int32Array {
    return this.#rows;
  }

  /** The vectors as 32-bit words (VECTOR_WORDS each); valid until the next `addVector`. */
  get vectors(): Uint32Array {
    return this.#vectors;
  }

  get rowBuffer(): ArrayBuffer {
    return this.#rowMemory.buffer;
  }

  get vectorBuffer(): ArrayBuffer {
    return this.#vectorMemory.buffer;
  }

  /** The address of the first I/O vector, for SQEs. */
  get vectorAddress(): number {
    return this.#vectorMemory.address;
  }

  /**
   * Add a row for `extent` of a file; the vectors of a read or write follow through `addVector`.
   * Returns the row's index.
   */
  push(
    owner: number,
    token: number,
    kind: IoKind,
    fd: number,
    extent: Extent,
    mode: number,
    flags: number,
  ): number {
    if (this.count === this.#rowCapacity) this.#growRows();
    const index = this.count++;
    const rows = this.#rows;
    const at = (index & MAX_INDEX) * ROW_WORDS;
    rows[at + ROW.kind] = kind;
    rows[at + ROW.fd] = fd;
    const { offset, length } = extent;
    rows[at + ROW.offset] = offset;
    rows[at + ROW.offset + 1] = offset / TWO_32;
    rows[at + ROW.length] = length;
    rows[at + ROW.length + 1] = length / TWO_32;
    rows[at + ROW.firstVector] = this.#vectorCount;
    rows[at + ROW.vectorCount] = 0;
    rows[at + ROW.rwFlags] = 0;
    rows[at + ROW.result] = 0;
    rows[at + ROW.user] = 0;
    rows[at + ROW.flags] = flags;
    rows[at + ROW.owner] = owner;
    rows[at + ROW.token] = token;
    rows[at + ROW.mode] = mode;
    rows[at + ROW.map + 1] = 0;
    return index;
  }

  /** The newest row, a read or write, may be a copy from or to the file's mapping; see `ioRun`. */
  mapNewest({ low, high }: MapAddress, flags: number): void {
    const at = ((this.count - 1) & MAX_INDEX) * ROW_WORDS;
    const rows = this.#rows;
    rows[at + ROW.flags] = flags;
    rows[at + ROW.map] = low;
    rows[at + ROW.map + 1] = high;
  }

  /** Add `length` bytes at `offset` of `memory` to the newest row. */
  addVector(memory: Memory, offset: number, length: number): void {
    if (this.#vectorCount === this.#vectorCapacity) this.#growVectors();
    const address = memory.address + offset;
    const vectors = this.#vectors;
    const at = (this.#vectorCount++ & MAX_INDEX) * VECTOR_WORDS;
    vectors[at] = address;
    vectors[at + 1] = address / TWO_32;
    vectors[at + 2] = length;
    vectors[at + 3] = 0;
    const count = ((this.count - 1) & MAX_INDEX) * ROW_WORDS + ROW.vectorCount;
    this.#rows[count] = this.#rows[count]! + 1;
  }

  /** Forget all rows (their memory stays). */
  clear(): void {
    this.count = 0;
    this.#vectorCount = 0;
    while (this.#outgrown.length > 0) this.#outgrown.pop()!.unmap();
  }

  /** Free the memory; the table is unusable afterwards. */
  close(): void {
    this.clear();
    this.#rowMemory.unmap();
    this.#vectorMemory.unmap();
  }

  #growRows(): void {
    this.#rowCapacity *= 2;
    const memory = this.#addon.allocate(this.#rowCapacity * ROW_BYTES);
    const rows = new Int32Array(memory.buffer);
    rows.set(this.#rows);
    this.#outgrown.push(this.#rowMemory);
    this.#rowMemory = memory;
    this.#rows = rows;
  }

  #growVectors(): void {
    this.#vectorCapacity *= 2;
    const memory = this.#addon.allocate(this.#vectorCapacity * 16);
    const vectors = new Uint32Array(memory.buffer);
    vectors.set(this.#vectors);
    this.#outgrown.push(this.#vectorMemory);
    this.#vectorMemory = memory;
    this.#vectors = vectors;
  }
}
