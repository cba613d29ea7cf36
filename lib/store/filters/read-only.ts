import type { Extent, Memory } from '../../native/io-table.ts';
import { Errno } from '../errno.ts';
import type { Store, StoreFactory, StoreInfo, StoreSink } from '../store.ts';

/** Refuses whatever would change the store below, with EROFS. */
export class ReadOnlyStore implements Store {
  readonly info: StoreInfo;
  readonly #inner: Store;
  readonly #sink: StoreSink;
  /** Bytes of a refused write still to be described. */
  #refusedBytes = 0;
  #refusedToken = 0;

  constructor(inner: StoreFactory, sink: StoreSink) {
    this.#inner = inner(sink);
    this.#sink = sink;
    this.info = { ...this.#inner.info, readOnly: true, discard: false };
  }

  read(token: number, extent: Extent): void {
    this.#inner.read(token, extent);
  }

  write(token: number, { length }: Extent): void {
    this.#refusedToken = token;
    this.#refusedBytes = length;
  }

  addMemory(memory: Memory, offset: number, length: number): void {
    if (this.#refusedBytes === 0) {
      this.#inner.addMemory(memory, offset, length);
      return;
    }
    this.#refusedBytes -= length;
    if (this.#refusedBytes === 0) this.#refuse(this.#refusedToken);
  }

  flush(token: number): void {
    this.#inner.flush(token);
  }

  discard(token: number): void {
    this.#refuse(token);
  }

  writeZeroes(token: number): void {
    this.#refuse(token);
  }

  close(): void {
    this.#inner.close();
  }

  #refuse(token: number): void {
    this.#sink.completed(token, -Errno.EROFS);
  }
}
