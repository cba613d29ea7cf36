import { KEY_BYTES } from '../frame.ts';
import { BLOB_BYTES } from './layout.ts';

/** How a commit ended that did not end well. */
export const Failed = {
  No: 0,
  /** The slot or its sync: nobody knows whether the new state is in the file. */
  Commit: 1,
  /** The data area: the new state is durable, but the data area may be half old, half new. */
  Data: 2,
} as const;
export type Failed = (typeof Failed)[keyof typeof Failed];

/** 32-bit words, then the secrets. */
const Word = { Taken: 0, Failed: 1, Programmed: 2, Counter: 3, SequenceLow: 4, SequenceHigh: 5 };
const KEY_AT = 64;
const WRAPPER_AT = KEY_AT + KEY_BYTES;
const BLOB_AT = WRAPPER_AT + KEY_BYTES;
const BYTES = BLOB_AT + BLOB_BYTES;

/**
 * The state of an open state file, in shared memory: a plain message would copy the keys, and would
 * leave whoever opens the device a second time with the counter of the first.
 */
export class LiveState {
  readonly buffer: SharedArrayBuffer;
  readonly #words: Int32Array;
  /** The authentication key while nobody has taken the state; zeroes before it is programmed. */
  readonly key: Uint8Array;
  /** The wrap key, likewise. */
  readonly wrapper: Uint8Array;
  /** The wrapped authentication key. */
  readonly blob: Uint8Array;

  constructor(buffer: SharedArrayBuffer = new SharedArrayBuffer(BYTES)) {
    this.buffer = buffer;
    this.#words = new Int32Array(buffer, 0, KEY_AT / 4);
    this.key = new Uint8Array(buffer, KEY_AT, KEY_BYTES);
    this.wrapper = new Uint8Array(buffer, WRAPPER_AT, KEY_BYTES);
    this.blob = new Uint8Array(buffer, BLOB_AT, BLOB_BYTES);
  }

  /** The write counter. Anybody may look. */
  get counter(): number {
    return Atomics.load(this.#words, Word.Counter) >>> 0;
  }

  set counter(value: number) {
    Atomics.store(this.#words, Word.Counter, value);
  }

  get programmed(): boolean {
    return Atomics.load(this.#words, Word.Programmed) !== 0;
  }

  set programmed(value: boolean) {
    Atomics.store(this.#words, Word.Programmed, value ? 1 : 0);
  }

  /** Other than `No`: what the file holds is not known until it is opened again. */
  get failed(): Failed {
    return Atomics.load(this.#words, Word.Failed) as Failed;
  }

  set failed(value: Failed) {
    Atomics.store(this.#words, Word.Failed, value);
  }

  /** Of the newest commit; only its owner reads and writes it. */
  get sequence(): number {
    const high = this.#words[Word.SequenceHigh]! >>> 0;
    return high * 2 ** 32 + (this.#words[Word.SequenceLow]! >>> 0);
  }

  set sequence(value: number) {
    this.#words[Word.SequenceLow] = value;
    this.#words[Word.SequenceHigh] = value / 2 ** 32;
  }

  /** Become the one that commits, and take the keys out of shared memory. */
  take(key: Uint8Array, wrapper: Uint8Array): void {
    if (Atomics.compareExchange(this.#words, Word.Taken, 0, 1) !== 0) {
      throw new Error('rpmb: this state is served already');
    }
    key.set(this.key);
    wrapper.set(this.wrapper);
    this.wipe();
  }

  /** Let the next one have it; what it committed stays. */
  give(key: Uint8Array, wrapper: Uint8Array): void {
    this.key.set(key);
    this.wrapper.set(wrapper);
    Atomics.store(this.#words, Word.Taken, 0);
  }

  wipe(): void {
    this.key.fill(0);
    this.wrapper.fill(0);
  }
}
