import type { Memory } from '../native/index.ts';

/**
 * Where bytes live. One asynchronous interface: begin an operation under a token, be told through
 * the sink that the token completed. A token may be used again once it has completed.
 *
 * A read or write is begun, then its memory is added piece by piece, in order:
 *
 *     store.read(token, offset, length);
 *     store.addMemory(region, at, bytes);   // as often as needed; the pieces sum up to `length`
 *
 * Nothing is allocated per operation on the file-descriptor path. Operations begun in one turn of
 * the engine are submitted together at its end; memory must stay valid until completion.
 * The caller has checked `offset + length` against `capacity`.
 */
export interface Store {
  readonly info: StoreInfo;
  read(token: number, offset: number, length: number): void;
  write(token: number, offset: number, length: number): void;
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

/** Told when an operation ends. `result` is the byte count (reads, writes), 0, or -errno. */
export interface StoreSink {
  completed(token: number, result: number): void;
}
