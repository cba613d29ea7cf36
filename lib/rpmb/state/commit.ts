import type { Memory } from '../../native/io-table.ts';
import type { Store, StoreFactory, StoreSink } from '../../store/store.ts';
import { BLOCK_BYTES, FRAME_BYTES, FrameField, KEY_BYTES } from '../frame.ts';
import {
  dataOffset,
  encodeSlot,
  SLOT_HEADER_BYTES,
  type SlotContent,
  type StateLayout,
  slotOf,
  slotOffset,
} from './layout.ts';
import { Failed, LiveState } from './live.ts';
import { type GetRandom, wrapKey } from './wrap.ts';

/** An opened and recovered state, as whoever serves it gets it: `postMessage` carries it. */
export interface StateModel {
  readonly layout: StateLayout;
  /** A `LiveState`'s buffer. */
  readonly live: SharedArrayBuffer;
}

/** Key, wrap key, and the header of the slot that is written. */
export const STATE_MEMORY_BYTES = 2 * KEY_BYTES + SLOT_HEADER_BYTES;

export interface StateSetup {
  readonly model: StateModel;
  /** The state file's bytes. */
  readonly store: StoreFactory;
  /** STATE_MEMORY_BYTES that are ours alone, at best out of core dumps and swap. */
  readonly memory: Memory;
  readonly getRandom: GetRandom;
}

const Step = { Idle: 0, Read: 1, Slot: 2, Sync: 3, Data: 4 } as const;
type Step = (typeof Step)[keyof typeof Step];

/** Everything here is one operation after the other. */
const TOKEN = 0;

/** Where frames lie whose data fields are the blocks of a transfer. */
interface Frames {
  readonly memory: Memory;
  readonly at: number;
}

const NO_FRAMES: Frames = { memory: { u8: new Uint8Array(0), address: 0 }, at: 0 };

/**
 * Key, counter and data of one device on a store. A change is one commit: the slot whose turn it is
 * gets the new state with its redo data, a sync makes it durable, and only then the data area is
 * written; the next commit's sync makes that durable, and until then recovery can do it again.
 *
 * A commit of which any step fails leaves old or new, whole, in the file, and nobody knows which: from
 * then on the old state is shown and no more is written until the file is opened again.
 */
export class RpmbState implements StoreSink {
  readonly layout: StateLayout;
  /** The authentication key; zeroes until it is programmed. */
  readonly key: Uint8Array;
  readonly #wrapper: Uint8Array;
  readonly #header: Memory;
  readonly #headerAt: number;
  readonly #live: LiveState;
  readonly #store: Store;
  readonly #getRandom: GetRandom;

  #step: Step = Step.Idle;
  /** Bytes the running step must move. */
  #expected = 0;
  #done: (ok: boolean) => void = () => {};
  #next: SlotContent | undefined;
  /** A key about to be programmed. */
  #newKey: Uint8Array | undefined;
  #frames = NO_FRAMES;

  constructor(setup: StateSetup) {
    const { u8 } = setup.memory;
    this.layout = setup.model.layout;
    this.#live = new LiveState(setup.model.live);
    this.key = u8.subarray(0, KEY_BYTES);
    this.#wrapper = u8.subarray(KEY_BYTES, 2 * KEY_BYTES);
    this.#header = setup.memory;
    this.#headerAt = 2 * KEY_BYTES;
    this.#getRandom = setup.getRandom;
    this.#live.take(this.key, this.#wrapper);
    this.#store = setup.store(this);
  }

  get counter(): number {
    return this.#live.counter;
  }

  get programmed(): boolean {
    return this.#live.programmed;
  }

  /** Nothing is written any more. */
  get failed(): boolean {
    return this.#live.failed !== Failed.No;
  }

  /** Read `count` blocks into the data fields of frames that lie from `at` on. */
  read(
    address: number,
    count: number,
    memory: Memory,
    at: number,
    done: (ok: boolean) => void,
  ): void {
    // The data area may be half written: better no answer than one with a MAC under it.
    if (this.#live.failed === Failed.Data) {
      done(false);
      return;
    }
    this.#begin(Step.Read, done);
    this.#expected = count * BLOCK_BYTES;
    this.#frames = { memory, at };
    this.#store.read(TOKEN, { offset: this.#blockOffset(address), length: this.#expected });
    this.#addBlocks(count);
  }

  /** Commit an authenticated write of the data fields of `count` frames. */
  write(
    address: number,
    count: number,
    memory: Memory,
    at: number,
    done: (ok: boolean) => void,
  ): void {
    this.#frames = { memory, at };
    this.#commit({ counter: this.counter + 1, address, blockCount: count }, undefined, done);
  }

  /** Commit the authentication key. */
  programKey(key: Uint8Array, done: (ok: boolean) => void): void {
    this.#commit({ counter: this.counter, address: 0, blockCount: 0 }, key, done);
  }

  /** Commit a counter for a device that has not been used yet. */
  startCounter(counter: number, done: (ok: boolean) => void): void {
    this.#commit({ counter, address: 0, blockCount: 0 }, undefined, done);
  }

  /** Nothing may be under way. The state may be taken again. */
  close(): void {
    this.#live.give(this.key, this.#wrapper);
    this.#header.u8.fill(0, 0, STATE_MEMORY_BYTES);
    this.#store.close();
  }

  completed(_token: number, result: number): void {
    const right = result === this.#expected;
    switch (this.#step) {
      case Step.Read:
        this.#end(right);
        break;
      case Step.Slot:
        if (right) this.#sync();
        else this.#fail(Failed.Commit);
        break;
      case Step.Sync:
        if (!right) this.#fail(Failed.Commit);
        else if (this.#next!.blockCount === 0) this.#committed();
        else this.#writeData();
        break;
      case Step.Data:
        if (right) this.#committed();
        else this.#fail(Failed.Data);
        break;
      default:
        throw new Error('rpmb: the store completed what was not asked for');
    }
  }

  #commit(
    change: { readonly counter: number; readonly address: number; readonly blockCount: number },
    key: Uint8Array | undefined,
    done: (ok: boolean) => void,
  ): void {
    if (this.failed) {
      done(false);
      return;
    }
    const storedKey = key === undefined ? this.#storedKey() : this.#storedForm(key);
    this.#begin(Step.Slot, done);
    this.#newKey = key;
    const { counter, address, blockCount } = change;
    this.#next = { sequence: this.#live.sequence + 1, counter, address, blockCount, storedKey };
    this.#writeSlot(this.#next);
  }

  #writeSlot(content: SlotContent): void {
    const { memory, at } = this.#frames;
    const redo: Uint8Array[] = [];
    for (let i = 0; i < content.blockCount; i++) {
      const from = at + i * FRAME_BYTES + FrameField.Data;
      redo.push(memory.u8.subarray(from, from + BLOCK_BYTES));
    }
    const header = this.#header.u8.subarray(this.#headerAt, this.#headerAt + SLOT_HEADER_BYTES);
    encodeSlot(this.layout, content, redo, header);
    this.#expected = SLOT_HEADER_BYTES + content.blockCount * BLOCK_BYTES;
    const offset = slotOffset(this.layout, slotOf(content.sequence));
    this.#store.write(TOKEN, { offset, length: this.#expected });
    this.#store.addMemory(this.#header, this.#headerAt, SLOT_HEADER_BYTES);
    this.#addBlocks(content.blockCount);
  }

  #sync(): void {
    this.#step = Step.Sync;
    this.#expected = 0;
    this.#store.flush(TOKEN);
  }

  #writeData(): void {
    const { address, blockCount } = this.#next!;
    this.#step = Step.Data;
    this.#expected = blockCount * BLOCK_BYTES;
    this.#store.write(TOKEN, { offset: this.#blockOffset(address), length: this.#expected });
    this.#addBlocks(blockCount);
  }

  #addBlocks(count: number): void {
    const { memory, at } = this.#frames;
    for (let i = 0; i < count; i++) {
      this.#store.addMemory(memory, at + i * FRAME_BYTES + FrameField.Data, BLOCK_BYTES);
    }
  }

  #committed(): void {
    const { sequence, counter, storedKey } = this.#next!;
    this.#live.sequence = sequence;
    this.#live.counter = counter;
    if (this.#newKey !== undefined) {
      this.key.set(this.#newKey);
      if (this.layout.wrapCheck !== undefined) {
        this.#live.blob.set(storedKey!);
        this.#wrapper.fill(0);
      }
      this.#live.programmed = true;
    }
    this.#end(true);
  }

  #fail(failed: Failed): void {
    this.#live.failed = failed;
    this.#end(false);
  }

  #begin(step: Step, done: (ok: boolean) => void): void {
    if (this.#step !== Step.Idle) throw new Error('rpmb: a state does one thing at a time');
    this.#step = step;
    this.#done = done;
  }

  #end(ok: boolean): void {
    this.#step = Step.Idle;
    this.#newKey = undefined;
    this.#frames = NO_FRAMES;
    this.#done(ok);
  }

  #blockOffset(address: number): number {
    return dataOffset(this.layout) + address * BLOCK_BYTES;
  }

  /** The programmed key as slots hold it. */
  #storedKey(): Uint8Array | undefined {
    if (!this.programmed) return undefined;
    return this.layout.wrapCheck === undefined ? this.key : this.#live.blob;
  }

  #storedForm(key: Uint8Array): Uint8Array {
    if (this.layout.wrapCheck === undefined) return key;
    return wrapKey(this.#wrapper, this.layout.id, key, this.#getRandom);
  }
}
