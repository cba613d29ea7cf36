import type { Extent, IoPort, Memory, RowOwner } from '../../native/io-table.ts';
import {
  MAX_TOKENS,
  type Store,
  type StoreFactory,
  type StoreInfo,
  type StoreSink,
} from '../store.ts';

/**
 * Makes every operation slow. The store below does its work at once; only the word that it is done is
 * held back. So guest memory isn't touched during the delay, and a queue that is being stopped sees
 * what a slow disk would show it: requests in flight that end, later.
 */
export class DelayStore implements Store, StoreSink, RowOwner {
  readonly info: StoreInfo;
  readonly #inner: Store;
  readonly #sink: StoreSink;
  readonly #port: IoPort;
  readonly #owner: number;
  readonly #microseconds: number;
  readonly #results = new Float64Array(MAX_TOKENS);

  constructor(inner: StoreFactory, sink: StoreSink, port: IoPort, microseconds: number) {
    this.#sink = sink;
    this.#port = port;
    this.#owner = port.register(this);
    this.#microseconds = microseconds;
    this.#inner = inner(this);
    this.info = this.#inner.info;
  }

  read(token: number, extent: Extent): void {
    this.#inner.read(token, extent);
  }

  write(token: number, extent: Extent): void {
    this.#inner.write(token, extent);
  }

  addMemory(memory: Memory, offset: number, length: number): void {
    this.#inner.addMemory(memory, offset, length);
  }

  flush(token: number): void {
    this.#inner.flush(token);
  }

  discard(token: number, offset: number, length: number): void {
    this.#inner.discard(token, offset, length);
  }

  writeZeroes(token: number, offset: number, length: number, mayUnmap: boolean): void {
    this.#inner.writeZeroes(token, offset, length, mayUnmap);
  }

  close(): void {
    this.#inner.close();
    this.#port.unregister(this.#owner);
  }

  completed(token: number, result: number): void {
    this.#results[token] = result;
    this.#port.after(this.#owner, token, this.#microseconds);
  }

  rowCompleted(token: number): void {
    this.#sink.completed(token, this.#results[token]!);
  }
}
