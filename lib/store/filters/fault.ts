import type { Extent, Memory } from '../../native/io-table.ts';
import { Errno } from '../errno.ts';
import type { Store, StoreFactory, StoreInfo, StoreSink } from '../store.ts';

export type FaultKind = 'read' | 'write' | 'flush' | 'discard' | 'writeZeroes';

/** Which operations fail, and how. The first rule that matches an operation is applied. */
export interface FaultRule {
  readonly kind: FaultKind;
  /** Only the nth operation of its kind (from 1). */
  readonly nth?: number;
  /** A share (0 … 1) of the operations of its kind, drawn from the seed. Neither: all of them. */
  readonly share?: number;
  /** Fail with this errno (EIO unless told), without touching the store below. */
  readonly errno?: number;
  /** Reads and writes: move only the first part, so many bytes at most, instead of failing. */
  readonly short?: number;
}

/** Fails or shortens operations: the same ones each time for the same seed and sequence. */
export class FaultStore implements Store, StoreSink {
  readonly info: StoreInfo;
  readonly #inner: Store;
  readonly #sink: StoreSink;
  readonly #rules: readonly FaultRule[];
  readonly #counts: Record<FaultKind, number> = {
    read: 0,
    write: 0,
    flush: 0,
    discard: 0,
    writeZeroes: 0,
  };
  #random: number;
  // The transfer being described: bytes to hand on, bytes to swallow after them, and its result where
  // that is known before its last piece came.
  #passBytes = 0;
  #swallowBytes = 0;
  #token = 0;
  #result: number | undefined;

  constructor(inner: StoreFactory, sink: StoreSink, rules: readonly FaultRule[], seed = 1) {
    this.#inner = inner(this);
    this.#sink = sink;
    this.#rules = rules;
    this.#random = seed >>> 0;
    this.info = this.#inner.info;
  }

  read(token: number, { offset, length }: Extent): void {
    const bytes = this.#beginTransfer('read', token, length);
    if (bytes > 0) this.#inner.read(token, { offset, length: bytes });
  }

  write(token: number, { offset, length }: Extent): void {
    const bytes = this.#beginTransfer('write', token, length);
    if (bytes > 0) this.#inner.write(token, { offset, length: bytes });
  }

  addMemory(memory: Memory, offset: number, length: number): void {
    const pass = Math.min(length, this.#passBytes);
    this.#passBytes -= pass;
    this.#swallowBytes -= length - pass;
    // Last, since the operation may complete in either of these.
    if (pass > 0) this.#inner.addMemory(memory, offset, pass);
    else if (this.#swallowBytes === 0 && this.#result !== undefined) {
      this.#sink.completed(this.#token, this.#result);
    }
  }

  flush(token: number): void {
    const rule = this.#match('flush');
    if (rule === undefined) this.#inner.flush(token);
    else this.#fail(token, rule);
  }

  discard(token: number, offset: number, length: number): void {
    const rule = this.#match('discard');
    if (rule === undefined) this.#inner.discard(token, offset, length);
    else this.#fail(token, rule);
  }

  writeZeroes(token: number, offset: number, length: number, mayUnmap: boolean): void {
    const rule = this.#match('writeZeroes');
    if (rule === undefined) this.#inner.writeZeroes(token, offset, length, mayUnmap);
    else this.#fail(token, rule);
  }

  close(): void {
    this.#inner.close();
  }

  /** From the store below. Word of a shortened transfer waits until its description has ended. */
  completed(token: number, result: number): void {
    if (this.#swallowBytes > 0 && token === this.#token) this.#result = result;
    else this.#sink.completed(token, result);
  }

  /** How many bytes the store below is asked for; 0 when the operation ends here. */
  #beginTransfer(kind: 'read' | 'write', token: number, length: number): number {
    const rule = this.#match(kind);
    let bytes = length;
    this.#result = undefined;
    if (rule?.short !== undefined) {
      const short = Math.min(rule.short, length);
      bytes = short - (short % this.info.blockSize);
      if (bytes === 0) this.#result = 0;
    } else if (rule !== undefined) {
      bytes = 0;
      this.#result = errnoOf(rule);
    }
    this.#token = token;
    this.#passBytes = bytes;
    this.#swallowBytes = length - bytes;
    return bytes;
  }

  #fail(token: number, rule: FaultRule): void {
    this.#sink.completed(token, errnoOf(rule));
  }

  #match(kind: FaultKind): FaultRule | undefined {
    const count = ++this.#counts[kind];
    for (const rule of this.#rules) {
      if (rule.kind !== kind) continue;
      if (rule.nth !== undefined && rule.nth !== count) continue;
      if (rule.share !== undefined && this.#draw() >= rule.share) continue;
      return rule;
    }
    return undefined;
  }

  /** Mulberry32: 0 … 1, from 32 bits of state. */
  #draw(): number {
    this.#random = (this.#random + 0x6d2b79f5) >>> 0;
    let x = this.#random;
    x = Math.imul(x ^ (x >>> 15), x | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  }
}

function errnoOf(rule: FaultRule): number {
  return -(rule.errno ?? Errno.EIO);
}
