import type { Extent, Memory } from '../native/index.ts';

/** Tokens are 0 … MAX_TOKENS - 1: the heads of the largest ring, so per-token state fits in arrays. */
export const MAX_TOKENS = 1024;

/**
 * Where bytes live. One asynchronous interface: begin an operation under a token, be told through
 * the sink that the token completed. A token may be used again once it has completed.
 *
 * A read or write is begun, then its memory is added piece by piece, in order:
 *
 *     store.read(token, extent);
 *     store.addMemory(region, at, bytes);   // as often as needed; the pieces sum up to its length
 *
 * An extent's length is never 0, so the piece that completes the sum ends the operation's
 * description: a store that must see all pieces first (alignment, private buffers) acts there. No
 * other operation may be begun in between. The completion may come from within that last call (or from within `flush`,
 * `discard`, `writeZeroes`), so the caller's state must be in order before it.
 *
 * Nothing is allocated per operation on the file-descriptor path. Operations begun in one turn of
 * the engine are submitted together at its end; memory must stay valid until completion.
 * The caller has checked that offset and length fit `capacity`.
 */
export interface Store {
  readonly info: StoreInfo;
  read(token: number, extent: Extent): void;
  write(token: number, extent: Extent): void;
  addMemory(memory: Memory, offset: number, length: number): void;
  /** Make every write completed before this call durable. */
  flush(token: number): void;
  /** Give the space back; what is read there afterwards is unspecified (zeroes in practice). */
  discard(token: number, offset: number, length: number): void;
  /** Make the range read as zeroes; with `mayUnmap` the space may be given back. */
  writeZeroes(token: number, offset: number, length: number, mayUnmap: boolean): void;
  /** Release descriptors and locks. Nothing may be in flight. */
  close(): void;
}

export interface StoreInfo {
  /** What is served, for messages: a path or a URL. */
  readonly name: string;
  /** Bytes. */
  readonly capacity: number;
  readonly readOnly: boolean;
  /** Offsets and lengths must be multiples of this (1 for a buffered file). */
  readonly blockSize: number;
  /** What the medium likes (TOPOLOGY): bytes, a power of two. */
  readonly physicalBlockSize: number;
  /** Memory given to reads and writes must be aligned to this (1 for a buffered file). */
  readonly memoryAlignment: number;
  readonly discard: boolean;
}

/**
 * Told when an operation ends. `result` is the byte count (reads, writes), 0, or -errno.
 * A count below the length asked for is a failure too, and says how much of it is valid; a file that
 * was cut short under us reads like that.
 */
export interface StoreSink {
  completed(token: number, result: number): void;
}

/** How a store is made for whoever will be told of its completions; what filters are built from. */
export type StoreFactory = (sink: StoreSink) => Store;
