import type { Store, StoreInfo, StoreSink } from '../store/store.ts';

/** What a store operation holds memory as: the `Memory` of `addMemory`. */
type StoreMemory = Parameters<Store['addMemory']>[0];
type StoreExtent = Parameters<Store['read']>[1];

export type StoreOperationKind = 'read' | 'write' | 'flush' | 'discard' | 'writeZeroes';

/** An operation as it was begun. */
export interface StoreOperation {
  readonly kind: StoreOperationKind;
  readonly token: number;
  readonly offset: number;
  readonly length: number;
  readonly mayUnmap: boolean;
  readonly pieces: { memory: StoreMemory; offset: number; length: number }[];
}

export interface MemoryStoreOptions extends Partial<Omit<StoreInfo, 'capacity'>> {
  /** Complete an operation as soon as it is complete; otherwise (the default) in `run()`. */
  readonly immediate?: boolean;
}

/**
 * A store over bytes in memory that records what it is asked, and fails on demand. An immediate
 * store completes a read or write in the `addMemory` call that brings its last byte.
 */
export class MemoryStore implements Store {
  readonly info: StoreInfo;
  readonly bytes: Uint8Array;
  /** Every operation, in the order begun. */
  readonly operations: StoreOperation[] = [];
  closed = false;

  readonly #sink: StoreSink;
  readonly #immediate: boolean;
  readonly #pending: StoreOperation[] = [];
  /** Results forced on operations, by their number from 0 on. */
  readonly #forced = new Map<number, number>();
  #gathering: StoreOperation | undefined;
  #gathered = 0;

  constructor(bytes: Uint8Array, sink: StoreSink, options: MemoryStoreOptions = {}) {
    const { immediate = false, ...info } = options;
    this.bytes = bytes;
    this.#sink = sink;
    this.#immediate = immediate;
    this.info = {
      name: 'memory',
      readOnly: false,
      blockSize: 1,
      physicalBlockSize: 512,
      memoryAlignment: 1,
      discard: true,
      ...info,
      capacity: bytes.length,
    };
  }

  /** Operations begun and not completed. */
  get pending(): number {
    return this.#pending.length + (this.#gathering === undefined ? 0 : 1);
  }

  /** The `n`th operation (from 0) ends with `-errno` and does nothing. */
  failNth(n: number, errno: number): void {
    this.#forced.set(n, -errno);
  }

  /** The `n`th operation (from 0), a read or write, moves only `bytes` bytes. */
  shortenNth(n: number, bytes: number): void {
    this.#forced.set(n, bytes);
  }

  read(token: number, { offset, length }: StoreExtent): void {
    this.#begin('read', token, offset, length);
  }

  write(token: number, { offset, length }: StoreExtent): void {
    this.#begin('write', token, offset, length);
  }

  addMemory(memory: StoreMemory, offset: number, length: number): void {
    const operation = this.#gathering;
    if (operation === undefined) throw new Error('addMemory without a read or write');
    operation.pieces.push({ memory, offset, length });
    this.#gathered += length;
    if (this.#gathered > operation.length) {
      throw new Error(
        `memory of ${this.#gathered} bytes for a ${operation.kind} of ${operation.length}`,
      );
    }
    this.#settle();
  }

  flush(token: number): void {
    this.#begin('flush', token, 0, 0);
  }

  discard(token: number, offset: number, length: number): void {
    this.#begin('discard', token, offset, length);
  }

  writeZeroes(token: number, offset: number, length: number, mayUnmap: boolean): void {
    this.#begin('writeZeroes', token, offset, length, mayUnmap);
  }

  close(): void {
    if (this.pending > 0) throw new Error('closed with operations in flight');
    this.closed = true;
  }

  /** Complete up to `count` of the operations that wait, in their order. */
  run(count = Number.POSITIVE_INFINITY): void {
    for (let i = 0; i < count && this.#pending.length > 0; i++) {
      this.#complete(this.#pending.shift()!);
    }
  }

  #begin(
    kind: StoreOperationKind,
    token: number,
    offset: number,
    length: number,
    mayUnmap = false,
  ): void {
    if (this.closed) throw new Error(`${kind} on a closed store`);
    if (this.#gathering !== undefined) {
      throw new Error(
        `${kind} begun before the memory of the ${this.#gathering.kind} was complete`,
      );
    }
    if (offset < 0 || length < 0 || offset + length > this.bytes.length) {
      throw new RangeError(`${kind} of ${length} bytes at ${offset}: outside the store`);
    }
    const operation = { kind, token, offset, length, mayUnmap, pieces: [] };
    this.operations.push(operation);
    this.#gathering = operation;
    this.#gathered = 0;
    this.#settle();
  }

  /** Move the newest operation on once it has all its memory. */
  #settle(): void {
    const operation = this.#gathering!;
    const moves = operation.kind === 'read' || operation.kind === 'write';
    if (moves && this.#gathered < operation.length) return;
    this.#gathering = undefined;
    if (this.#immediate) this.#complete(operation);
    else this.#pending.push(operation);
  }

  #complete(operation: StoreOperation): void {
    const forced = this.#forced.get(this.operations.indexOf(operation));
    this.#sink.completed(operation.token, this.#perform(operation, forced));
  }

  #perform(operation: StoreOperation, forced: number | undefined): number {
    if (forced !== undefined && forced < 0) return forced;
    const { kind, offset, length } = operation;
    switch (kind) {
      case 'flush':
        return 0;
      case 'discard':
      case 'writeZeroes':
        this.bytes.fill(0, offset, offset + length);
        return 0;
      default:
        return this.#move(operation, Math.min(forced ?? length, length));
    }
  }

  #move(operation: StoreOperation, length: number): number {
    let done = 0;
    for (const { memory, offset, length: have } of operation.pieces) {
      const bytes = Math.min(have, length - done);
      const at = operation.offset + done;
      const guest = memory.u8.subarray(offset, offset + bytes);
      if (operation.kind === 'read') guest.set(this.bytes.subarray(at, at + bytes));
      else this.bytes.set(guest, at);
      done += bytes;
    }
    return done;
  }
}
