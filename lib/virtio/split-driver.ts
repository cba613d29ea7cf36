import type {
  AddOptions,
  Descriptor,
  DriverMemory,
  DriverOptions,
  DriverQueue,
  GuestBuffer,
  UsedElement,
} from './driver.ts';
import { Arena, putBuffer } from './driver-arena.ts';
import {
  AVAIL_NO_INTERRUPT,
  DESC_BYTES,
  DESC_INDIRECT,
  DESC_NEXT,
  DESC_WORDS,
  DESC_WRITE,
  needEvent,
  RING_ENTRIES,
  RING_FLAGS,
  RING_INDEX,
  USED_NO_NOTIFY,
} from './ring.ts';
import type { QueueLayout } from './virtqueue.ts';

/**
 * The driver's side of a split virtqueue (virtio 1.3 §2.7): for front ends and for tests. It builds
 * its rings at the beginning of the memory it is given and hands out the rest for buffers. The views
 * are public: what a hostile driver writes, a test writes there.
 */
export class SplitDriver implements DriverQueue {
  readonly size: number;
  readonly layout: QueueLayout;
  /** Descriptor table, four words a descriptor. */
  readonly desc: Uint32Array;
  /** Avail ring: flags, index, entries, used_event. */
  readonly avail: Uint16Array;
  /** Used ring: flags, index, …, avail_event; and its entries as pairs from word 1 on. */
  readonly used: Uint16Array;
  readonly used32: Uint32Array;
  usedId = 0;
  usedLength = 0;

  readonly #arena: Arena;
  readonly #mask: number;
  readonly #eventIndex: boolean;
  readonly #usedEvent: number;
  readonly #availEvent: number;
  /** Free descriptors: a list through `#follow`, which also keeps the chains in flight. */
  readonly #follow: Int32Array;
  #free = 0;
  #freeCount: number;
  /** Descriptors of the chain at each head, 0 where none is in flight. */
  readonly #counts: Uint16Array;
  readonly #tables: (GuestBuffer | undefined)[] = [];
  #nextAvail: number;
  #nextUsed: number;
  /** Avail index at the last `needsKick`. */
  #kicked: number;
  #outstanding = 0;

  constructor(memory: DriverMemory, options: DriverOptions) {
    const { size, position = { avail: 0, used: 0 } } = options;
    const arena = new Arena(memory, options.offset ?? 0);
    const desc = arena.part(DESC_BYTES * size, 16);
    const avail = arena.part(6 + 2 * size, 2);
    const used = arena.part(6 + 8 * size, 4);
    this.size = size;
    this.layout = {
      size,
      desc: desc.address,
      driver: avail.address,
      device: used.address,
      packed: false,
      indirect: options.indirect ?? false,
      eventIndex: options.eventIndex ?? false,
      position,
    };
    this.desc = desc.u32;
    this.avail = avail.u16;
    this.used = used.u16;
    this.used32 = used.u32;
    this.#arena = arena;
    this.#mask = size - 1;
    this.#eventIndex = this.layout.eventIndex;
    this.#usedEvent = RING_ENTRIES + size;
    this.#availEvent = RING_ENTRIES + 4 * size;
    this.#follow = Int32Array.from({ length: size }, (_, i) => i + 1);
    this.#freeCount = size;
    this.#counts = new Uint16Array(size);
    this.#nextAvail = position.avail;
    this.#nextUsed = position.used;
    this.#kicked = position.avail;
    this.avail[RING_INDEX] = position.avail;
    this.used[RING_INDEX] = position.used;
    this.avail[this.#usedEvent] = position.used;
    this.used[this.#availEvent] = position.avail;
  }

  get outstanding(): number {
    return this.#outstanding;
  }

  allocate(length: number, alignment = 16): number {
    return this.#arena.allocate(length, alignment);
  }

  add(
    readable: readonly GuestBuffer[],
    writable: readonly GuestBuffer[],
    options?: AddOptions,
  ): number {
    const count = readable.length + writable.length;
    if (count === 0) throw new RangeError('a chain has at least one descriptor');
    const indirect = options?.indirect === true;
    const needed = indirect ? 1 : count;
    if (needed > this.#freeCount) return -1;
    const head = this.#free;
    if (indirect) this.#addIndirect(head, readable, writable);
    else this.#addDirect(head, readable, writable);
    this.#freeCount -= needed;
    this.#counts[head] = needed;
    this.offer(head);
    return head;
  }

  /** Put `head` into the avail ring, whatever its chain is. */
  offer(head: number): void {
    this.avail[RING_ENTRIES + (this.#nextAvail & this.#mask)] = head;
    this.#nextAvail = (this.#nextAvail + 1) & 0xffff;
    this.#outstanding++;
    // The entry first, then the index (§2.7.13.3).
    Atomics.store(this.avail, RING_INDEX, this.#nextAvail);
  }

  /** Write a descriptor of the table as it is given. */
  writeDescriptor(index: number, descriptor: Descriptor): void {
    putBuffer(this.desc, index * DESC_WORDS, descriptor.address, descriptor.length);
    this.desc[index * DESC_WORDS + 3] = descriptor.flags | ((descriptor.next ?? 0) << 16);
  }

  needsKick(): boolean {
    const old = this.#kicked;
    const now = this.#nextAvail;
    this.#kicked = now;
    if (old === now) return false;
    if (!this.#eventIndex) return (Atomics.load(this.used, RING_FLAGS) & USED_NO_NOTIFY) === 0;
    return needEvent(Atomics.load(this.used, this.#availEvent), now, old);
  }

  next(): boolean {
    if (Atomics.load(this.used, RING_INDEX) === this.#nextUsed) return false;
    const at = 1 + 2 * (this.#nextUsed & this.#mask);
    this.#nextUsed = (this.#nextUsed + 1) & 0xffff;
    this.usedId = this.used32[at]!;
    this.usedLength = this.used32[at + 1]!;
    this.#recycle(this.usedId);
    return true;
  }

  poll(): UsedElement[] {
    const used: UsedElement[] = [];
    while (this.next()) used.push({ id: this.usedId, length: this.usedLength });
    return used;
  }

  enableSignals(): boolean {
    if (this.#eventIndex) Atomics.store(this.avail, this.#usedEvent, this.#nextUsed);
    else Atomics.store(this.avail, RING_FLAGS, 0);
    return Atomics.load(this.used, RING_INDEX) !== this.#nextUsed;
  }

  disableSignals(): void {
    // With EVENT_IDX: as far from the next used entry as an index can be (§2.7.7.1).
    if (this.#eventIndex) Atomics.store(this.avail, this.#usedEvent, (this.#nextUsed - 1) & 0xffff);
    else Atomics.store(this.avail, RING_FLAGS, AVAIL_NO_INTERRUPT);
  }

  #addDirect(
    head: number,
    readable: readonly GuestBuffer[],
    writable: readonly GuestBuffer[],
  ): void {
    let index = head;
    const count = readable.length + writable.length;
    for (let i = 0; i < count; i++) {
      const write = i >= readable.length;
      const { address, length } = write ? writable[i - readable.length]! : readable[i]!;
      const follow = this.#follow[index]!;
      const more = i + 1 < count;
      putBuffer(this.desc, index * DESC_WORDS, address, length);
      this.desc[index * DESC_WORDS + 3] =
        (more ? DESC_NEXT | (follow << 16) : 0) | (write ? DESC_WRITE : 0);
      index = follow;
    }
    this.#free = index;
  }

  #addIndirect(
    head: number,
    readable: readonly GuestBuffer[],
    writable: readonly GuestBuffer[],
  ): void {
    const count = readable.length + writable.length;
    let table = this.#tables[head];
    if (table === undefined || table.length < count * DESC_BYTES) {
      const length = Math.max(count, 4) * DESC_BYTES;
      table = { address: this.allocate(length), length };
      this.#tables[head] = table;
    }
    const words = this.#arena.memory.u32;
    let at = (table.address - this.#arena.memory.start) / 4;
    for (let i = 0; i < count; i++, at += DESC_WORDS) {
      const write = i >= readable.length;
      const { address, length } = write ? writable[i - readable.length]! : readable[i]!;
      putBuffer(words, at, address, length);
      words[at + 3] = (i + 1 < count ? DESC_NEXT | ((i + 1) << 16) : 0) | (write ? DESC_WRITE : 0);
    }
    putBuffer(this.desc, head * DESC_WORDS, table.address, count * DESC_BYTES);
    this.desc[head * DESC_WORDS + 3] = DESC_INDIRECT;
    this.#free = this.#follow[head]!;
  }

  /** Give the descriptors of a chain back. */
  #recycle(head: number): void {
    this.#outstanding--;
    const count = this.#counts[head];
    // What a test offered by hand has no descriptors of ours.
    if (count === undefined || count === 0) return;
    this.#counts[head] = 0;
    let last = head;
    for (let i = 1; i < count; i++) last = this.#follow[last]!;
    this.#follow[last] = this.#free;
    this.#free = head;
    this.#freeCount += count;
  }
}
