import { fdatasyncSync, readvSync, writevSync } from 'node:fs';
import type { Extent, Memory } from '../native/io-table.ts';
import { Errno } from './errno.ts';
import type { Store, StoreFactory, StoreInfo, StoreSink } from './store.ts';

/**
 * A file whose operations are done when the call that describes them returns: for tools and for the
 * moments before a device is served. Never on a reactor, where a disk would hold up every queue.
 */
export class SyncFileStore implements Store {
  readonly info: StoreInfo;
  readonly #fd: number;
  readonly #sink: StoreSink;
  // The transfer being described.
  #token = 0;
  #writes = false;
  #offset = 0;
  #left = 0;
  #pieces: Uint8Array[] = [];
  /** Set once a sync failed: the kernel tells once, then calls the lost pages clean. */
  #syncFailure = 0;

  /** The descriptor stays its opener's. */
  constructor(fd: number, info: StoreInfo, sink: StoreSink) {
    this.#fd = fd;
    this.info = info;
    this.#sink = sink;
  }

  read(token: number, extent: Extent): void {
    this.#begin(token, false, extent);
  }

  write(token: number, extent: Extent): void {
    this.#begin(token, true, extent);
  }

  addMemory(memory: Memory, offset: number, length: number): void {
    this.#pieces.push(memory.u8.subarray(offset, offset + length));
    this.#left -= length;
    if (this.#left > 0) return;
    const pieces = this.#pieces;
    this.#pieces = [];
    const move = this.#writes ? writevSync : readvSync;
    this.#sink.completed(
      this.#token,
      resultOf(() => move(this.#fd, pieces, this.#offset)),
    );
  }

  flush(token: number): void {
    if (this.#syncFailure === 0) {
      this.#syncFailure = resultOf(() => {
        fdatasyncSync(this.#fd);
        return 0;
      });
    }
    this.#sink.completed(token, this.#syncFailure);
  }

  discard(token: number): void {
    this.#sink.completed(token, 0);
  }

  writeZeroes(token: number, offset: number, length: number): void {
    const result = resultOf(() => writevSync(this.#fd, [new Uint8Array(length)], offset));
    this.#sink.completed(token, Math.min(result, 0));
  }

  close(): void {}

  #begin(token: number, writes: boolean, { offset, length }: Extent): void {
    this.#token = token;
    this.#writes = writes;
    this.#offset = offset;
    this.#left = length;
  }
}

/** What an operation came to, as a store tells it. */
function resultOf(operation: () => number): number {
  try {
    return operation();
  } catch (error) {
    const { errno } = error as NodeJS.ErrnoException;
    return errno === undefined ? -Errno.EIO : -Math.abs(errno);
  }
}

/** A store that completes at once, as plain calls. Each gives the operation's result. */
export class BlockingStore implements StoreSink {
  readonly #store: Store;
  #result: number | undefined;

  constructor(open: StoreFactory) {
    this.#store = open(this);
  }

  get info(): StoreInfo {
    return this.#store.info;
  }

  /** Fill `into` from `offset` on. */
  read(offset: number, into: Uint8Array): number {
    this.#store.read(0, { offset, length: into.length });
    this.#store.addMemory({ u8: into, address: 0 }, 0, into.length);
    return this.#take();
  }

  write(offset: number, bytes: Uint8Array): number {
    this.#store.write(0, { offset, length: bytes.length });
    this.#store.addMemory({ u8: bytes, address: 0 }, 0, bytes.length);
    return this.#take();
  }

  sync(): number {
    this.#store.flush(0);
    return this.#take();
  }

  completed(_token: number, result: number): void {
    this.#result = result;
  }

  #take(): number {
    const result = this.#result;
    this.#result = undefined;
    if (result === undefined)
      throw new Error(`${this.info.name}: the store does not complete at once`);
    return result;
  }
}
