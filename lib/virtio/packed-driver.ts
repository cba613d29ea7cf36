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
  DESC_AVAIL,
  DESC_BYTES,
  DESC_INDIRECT,
  DESC_NEXT,
  DESC_USED,
  DESC_WORDS,
  DESC_WRITE,
  EVENT_DESC,
  EVENT_DISABLE,
  EVENT_ENABLE,
} from './ring.ts';
import type { QueueLayout } from './virtqueue.ts';

const LAST = 3;
const WRAP_BIT = 15;
const OFFSET_MASK = 0x7fff;

/**
 * The driver's side of a packed virtqueue (virtio 1.3 §2.8): for front ends and for tests. Its views
 * of the ring are public: what a hostile driver writes, a test writes there.
 */
export class PackedDriver implements DriverQueue {
  readonly size: number;
  readonly layout: QueueLayout;
  /** Descriptor ring, four words a descriptor. */
  readonly desc: Uint32Array;
  /** Event suppression: written by the driver, by the device. */
  readonly driverArea: Uint32Array;
  readonly deviceArea: Uint32Array;
  usedId = 0;
  usedLength = 0;

  readonly #arena: Arena;
  /** The descriptor ring as signed words: what passes through Atomics stays a small integer. */
  readonly #state: Int32Array;
  readonly #eventIndex: boolean;
  /** Free buffer ids, as a stack. */
  readonly #ids: Uint16Array;
  #idCount: number;
  /** Ring slots of the chain with each id, 0 where none is in flight. */
  readonly #slots: Uint16Array;
  readonly #tables: (GuestBuffer | undefined)[] = [];
  #freeSlots: number;
  #nextAvail: number;
  #availWrap: number;
  #nextUsed: number;
  #usedWrap: number;
  /** Slots added since the last `needsKick`, and where the first of them is. */
  #added = 0;
  #addedAt = 0;
  #addedWrap = 0;
  #outstanding = 0;

  constructor(memory: DriverMemory, options: DriverOptions) {
    const { size, position = { avail: 0x8000, used: 0x8000 } } = options;
    const arena = new Arena(memory, options.offset ?? 0);
    const desc = arena.part(DESC_BYTES * size, 16);
    const driverArea = arena.part(4, 4);
    const deviceArea = arena.part(4, 4);
    this.size = size;
    this.layout = {
      size,
      desc: desc.address,
      driver: driverArea.address,
      device: deviceArea.address,
      packed: true,
      indirect: options.indirect ?? false,
      eventIndex: options.eventIndex ?? false,
      position,
    };
    this.desc = desc.u32;
    this.driverArea = driverArea.u32;
    this.deviceArea = deviceArea.u32;
    this.#arena = arena;
    this.#state = new Int32Array(desc.u32.buffer, desc.u32.byteOffset, desc.u32.length);
    this.#eventIndex = this.layout.eventIndex;
    this.#ids = Uint16Array.from({ length: size }, (_, i) => size - 1 - i);
    this.#idCount = size;
    this.#slots = new Uint16Array(size);
    this.#freeSlots = size;
    this.#nextAvail = position.avail & OFFSET_MASK;
    this.#availWrap = position.avail >>> WRAP_BIT;
    this.#nextUsed = position.used & OFFSET_MASK;
    this.#usedWrap = position.used >>> WRAP_BIT;
    // A ring that continues holds used descriptors of the lap before.
    for (let slot = 0; slot < size; slot++) {
      const wrap = slot < this.#nextAvail ? this.#availWrap : this.#availWrap ^ 1;
      this.desc[slot * DESC_WORDS + LAST] = (wrap === 1 ? DESC_AVAIL | DESC_USED : 0) << 16;
    }
    if (this.#eventIndex) this.enableSignals();
  }

  get outstanding(): number {
    return this.#outstanding;
  }

  /** Where the next chain goes, for descriptors written by hand. */
  get nextSlot(): number {
    return this.#nextAvail;
  }

  /** The flags that make a descriptor at `nextSlot` available. */
  get availableFlags(): number {
    return this.#availWrap === 1 ? DESC_AVAIL : DESC_USED;
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
    const slots = indirect ? 1 : count;
    if (slots > this.#freeSlots || this.#idCount === 0) return -1;
    const id = this.#ids[--this.#idCount]!;
    this.#slots[id] = slots;
    this.#freeSlots -= slots;
    this.#outstanding++;
    if (this.#added === 0) {
      this.#addedAt = this.#nextAvail;
      this.#addedWrap = this.#availWrap;
    }
    this.#added += slots;
    const first = this.#nextAvail * DESC_WORDS + LAST;
    let firstWord = 0;
    if (indirect) {
      const length = this.#writeTable(id, readable, writable);
      const flags = DESC_INDIRECT | this.availableFlags;
      putBuffer(this.desc, this.#nextAvail * DESC_WORDS, this.#tables[id]!.address, length);
      firstWord = id | (flags << 16);
      this.#advance();
    } else {
      for (let i = 0; i < count; i++) {
        const write = i >= readable.length;
        const { address, length } = write ? writable[i - readable.length]! : readable[i]!;
        const flags =
          (i + 1 < count ? DESC_NEXT : 0) | (write ? DESC_WRITE : 0) | this.availableFlags;
        const at = this.#nextAvail * DESC_WORDS;
        putBuffer(this.desc, at, address, length);
        if (i === 0) firstWord = id | (flags << 16);
        else this.#state[at + LAST] = id | (flags << 16);
        this.#advance();
      }
    }
    // The first descriptor is made available after the others (§2.8.17).
    Atomics.store(this.#state, first, firstWord);
    return id;
  }

  /** Write a descriptor of the ring as it is given. */
  writeDescriptor(slot: number, descriptor: Descriptor): void {
    putBuffer(this.desc, slot * DESC_WORDS, descriptor.address, descriptor.length);
    this.desc[slot * DESC_WORDS + LAST] = (descriptor.id ?? 0) | (descriptor.flags << 16);
  }

  needsKick(): boolean {
    const added = this.#added;
    this.#added = 0;
    if (added === 0) return false;
    const event = Atomics.load(this.deviceArea, 0);
    const flags = (event >>> 16) & 3;
    if (flags !== EVENT_DESC) return flags !== EVENT_DISABLE;
    // The wrap counter tells two laps apart, not three.
    if (added > this.size) return true;
    let ahead = (event & OFFSET_MASK) - this.#addedAt;
    if (((event >>> WRAP_BIT) & 1) !== this.#addedWrap) ahead += this.size;
    return ahead >= 0 && ahead < added;
  }

  next(): boolean {
    const at = this.#nextUsed * DESC_WORDS;
    const word = Atomics.load(this.#state, at + LAST);
    if (!this.#isUsed(word)) return false;
    this.usedId = word & 0xffff;
    // §2.8.4: the length counts where the WRITE flag is set.
    this.usedLength = ((word >>> 16) & DESC_WRITE) !== 0 ? this.desc[at + 2]! : 0;
    const slots = this.#slots[this.usedId] ?? 0;
    if (slots === 0) throw new Error(`the device used buffer id ${this.usedId}: not in flight`);
    this.#slots[this.usedId] = 0;
    this.#ids[this.#idCount++] = this.usedId;
    this.#freeSlots += slots;
    this.#outstanding--;
    this.#nextUsed += slots;
    if (this.#nextUsed >= this.size) {
      this.#nextUsed -= this.size;
      this.#usedWrap ^= 1;
    }
    return true;
  }

  poll(): UsedElement[] {
    const used: UsedElement[] = [];
    while (this.next()) used.push({ id: this.usedId, length: this.usedLength });
    return used;
  }

  enableSignals(): boolean {
    const word = this.#eventIndex
      ? this.#nextUsed | (this.#usedWrap << WRAP_BIT) | (EVENT_DESC << 16)
      : EVENT_ENABLE << 16;
    Atomics.store(this.driverArea, 0, word);
    return this.#isUsed(Atomics.load(this.#state, this.#nextUsed * DESC_WORDS + LAST));
  }

  disableSignals(): void {
    Atomics.store(this.driverArea, 0, EVENT_DISABLE << 16);
  }

  /** Both bits equal the wrap counter (§2.8.1). */
  #isUsed(word: number): boolean {
    const used = (this.#usedWrap === 1 ? DESC_AVAIL | DESC_USED : 0) << 16;
    return (word & ((DESC_AVAIL | DESC_USED) << 16)) === used;
  }

  #advance(): void {
    if (++this.#nextAvail === this.size) {
      this.#nextAvail = 0;
      this.#availWrap ^= 1;
    }
  }

  /** Write an indirect table for the chain `id`; returns its length in bytes. */
  #writeTable(
    id: number,
    readable: readonly GuestBuffer[],
    writable: readonly GuestBuffer[],
  ): number {
    const count = readable.length + writable.length;
    let table = this.#tables[id];
    if (table === undefined || table.length < count * DESC_BYTES) {
      const length = Math.max(count, 4) * DESC_BYTES;
      table = { address: this.allocate(length), length };
      this.#tables[id] = table;
    }
    const words = this.#arena.memory.u32;
    let at = (table.address - this.#arena.memory.start) / 4;
    for (let i = 0; i < count; i++, at += DESC_WORDS) {
      const write = i >= readable.length;
      const { address, length } = write ? writable[i - readable.length]! : readable[i]!;
      putBuffer(words, at, address, length);
      words[at + LAST] = (write ? DESC_WRITE : 0) << 16;
    }
    return count * DESC_BYTES;
  }
}
