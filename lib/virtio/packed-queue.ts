import type { Chain } from './chain.ts';
import { Access, type GuestMemory } from './guest-memory.ts';
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
  MAX_QUEUE_SIZE,
  RingFault,
  resolvePart,
  VirtqueueError,
  words32,
  words32Signed,
} from './ring.ts';
import {
  type FaultReason,
  Popped,
  type QueueFault,
  type QueueLayout,
  type QueuePosition,
  type Virtqueue,
} from './virtqueue.ts';
import { ChainWalker } from './walk.ts';

/** The word of a descriptor that holds its id and, in the upper half, its flags (virtio 1.3 §2.8.13). */
const LAST = 3;
const WRAP_BIT = 15;
const OFFSET_MASK = 0x7fff;
/** The bits of `LAST` that tell whose a descriptor is, as a signed word. */
const STATE = (DESC_AVAIL | DESC_USED) << 16;

/** The device's side of a packed virtqueue (virtio 1.3 §2.8). A chain's head is its buffer id. */
export class PackedQueue implements Virtqueue {
  readonly size: number;
  readonly #eventIndex: boolean;
  readonly #walker: ChainWalker;

  readonly #desc: Uint32Array;
  /** The same words, for those that hold flags. */
  readonly #state: Int32Array;
  /** Event suppression: one word each, offset and wrap in the lower half, flags in the upper (§2.8.14). */
  readonly #driverArea: Int32Array;
  readonly #deviceArea: Int32Array;

  /** Where the driver puts the next chain, and where the next used descriptor goes. */
  #nextAvail: number;
  #availWrap: number;
  #nextUsed: number;
  #usedWrap: number;

  /** Used descriptors not yet shown: the slot and wrap counter of the first, its last word, all their slots. */
  #stagedAt = 0;
  #stagedWrap = 0;
  #stagedWord = 0;
  #staged = 0;
  /** Slots taken from the driver and not given back. */
  #busy = 0;
  /** Used descriptors were published since construction: the driver's event offset is to be compared with ours. */
  #signalled = false;

  /** Ring slots of the chain with each buffer id, 0 where none is in flight. */
  readonly #slots: Uint16Array;
  #inFlight = 0;
  #fault: QueueFault | undefined;

  constructor(memory: GuestMemory, layout: QueueLayout) {
    const { size, position } = layout;
    // virtio 1.3 §2.8, §2.8.10.1: at most 2^15, not necessarily a power of two.
    if (!Number.isInteger(size) || size < 1 || size > MAX_QUEUE_SIZE) {
      throw new VirtqueueError(
        'ring-layout',
        `packed queue of ${size} entries: not in 1 … ${MAX_QUEUE_SIZE}`,
      );
    }
    if (!isPosition(position.avail, size) || !isPosition(position.used, size)) {
      throw new VirtqueueError(
        'ring-layout',
        `packed queue of ${size} entries at position ${position.avail}, ${position.used}: not in the ring`,
      );
    }
    const desc = resolvePart(memory, {
      name: 'descriptor ring',
      address: layout.desc,
      length: DESC_BYTES * size,
      alignment: 16,
      access: Access.ReadWrite,
    });
    const driverArea = resolvePart(memory, {
      name: 'driver event suppression',
      address: layout.driver,
      length: 4,
      alignment: 4,
      access: Access.Read,
    });
    const deviceArea = resolvePart(memory, {
      name: 'device event suppression',
      address: layout.device,
      length: 4,
      alignment: 4,
      access: Access.Write,
    });
    this.size = size;
    this.#eventIndex = layout.eventIndex;
    this.#walker = new ChainWalker(memory, layout.indirect, true);
    this.#desc = words32(desc, DESC_WORDS * size);
    this.#state = words32Signed(desc, DESC_WORDS * size);
    this.#driverArea = words32Signed(driverArea, 1);
    this.#deviceArea = words32Signed(deviceArea, 1);
    this.#nextAvail = position.avail & OFFSET_MASK;
    this.#availWrap = position.avail >>> WRAP_BIT;
    this.#nextUsed = position.used & OFFSET_MASK;
    this.#usedWrap = position.used >>> WRAP_BIT;
    this.#slots = new Uint16Array(size);
  }

  get fault(): QueueFault | undefined {
    return this.#fault;
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  get position(): QueuePosition {
    return {
      avail: this.#nextAvail | (this.#availWrap << WRAP_BIT),
      used: this.#nextUsed | (this.#usedWrap << WRAP_BIT),
    };
  }

  pop(chain: Chain): Popped {
    if (this.#fault !== undefined) return Popped.Broken;
    const first = this.#nextAvail;
    if (this.#desc.length === 0) return this.#break('memory-vanished', -1, first);
    // What the driver wrote before these flags is read after them (§2.8.21.1).
    const word = Atomics.load(this.#state, first * DESC_WORDS + LAST);
    if (!this.#isAvailable(word)) return Popped.None;
    // With every slot taken nothing can be available: the ring holds no more (§2.8.17).
    if (this.#busy === this.size) return this.#break('avail-index-jump', -1, first);
    let slots: number;
    try {
      slots = this.#walk(chain, first, word);
    } catch (error) {
      chain.reset(0);
      if (!(error instanceof RingFault)) throw error;
      return this.#break(error.reason, -1, error.detail, error.cause);
    }
    const id = chain.head;
    // The id is the driver's choice (§2.8.6); every known driver stays below the queue size.
    if (id >= this.size) return this.#break('head-out-of-range', id, first);
    if (this.#slots[id] !== 0) return this.#break('head-in-flight', id, first);
    this.#slots[id] = slots;
    this.#inFlight++;
    this.#busy += slots;
    const next = first + slots;
    if (next < this.size) {
      this.#nextAvail = next;
    } else {
      this.#nextAvail = next - this.size;
      this.#availWrap ^= 1;
    }
    return Popped.One;
  }

  complete(head: number, written: number): void {
    const slots = this.#release(head);
    const at = this.#nextUsed * DESC_WORDS;
    // Used: both bits equal the wrap counter (§2.8.1). WRITE says that the length counts (§2.8.4).
    const flags =
      (this.#usedWrap === 1 ? DESC_AVAIL | DESC_USED : 0) | (written > 0 ? DESC_WRITE : 0);
    const word = head | (flags << 16);
    this.#desc[at + 2] = written;
    if (this.#staged === 0) {
      // The driver looks at this one only (§2.8.2): what follows is hidden until it is written.
      this.#stagedAt = this.#nextUsed;
      this.#stagedWrap = this.#usedWrap;
      this.#stagedWord = word;
    } else {
      this.#state[at + LAST] = word;
    }
    this.#staged += slots;
    // One used descriptor a chain; the rest of its slots are skipped (§2.8.6).
    const next = this.#nextUsed + slots;
    if (next < this.size) {
      this.#nextUsed = next;
    } else {
      this.#nextUsed = next - this.size;
      this.#usedWrap ^= 1;
    }
  }

  fail(reason: FaultReason, head: number, detail: number): void {
    if (head >= 0) this.#release(head);
    this.#break(reason, head, detail);
  }

  publish(): boolean {
    const staged = this.#staged;
    if (staged === 0) return false;
    if (this.#desc.length === 0 || this.#driverArea.length === 0) {
      this.#break('memory-vanished', -1, this.#stagedAt);
      return false;
    }
    this.#staged = 0;
    this.#busy -= staged;
    // A sequentially consistent store: the batch before it, the driver's wish after it.
    Atomics.store(this.#state, this.#stagedAt * DESC_WORDS + LAST, this.#stagedWord);
    const event = Atomics.load(this.#driverArea, 0);
    const flags = (event >>> 16) & 3;
    if (flags === EVENT_DISABLE) return false;
    const first = !this.#signalled;
    this.#signalled = true;
    if (flags !== EVENT_DESC || !this.#eventIndex || first) return true;
    // Was the slot at the event offset, in the lap of the event's wrap counter, among those that
    // were used? (§2.8.10)
    let ahead = (event & OFFSET_MASK) - this.#stagedAt;
    if (((event >>> WRAP_BIT) & 1) !== this.#stagedWrap) ahead += this.size;
    return ahead >= 0 && ahead < staged;
  }

  enableKicks(): boolean {
    if (this.#fault !== undefined || this.#deviceArea.length === 0) return false;
    const word = this.#eventIndex
      ? this.#nextAvail | (this.#availWrap << WRAP_BIT) | (EVENT_DESC << 16)
      : EVENT_ENABLE << 16;
    // The store is a full fence: the ring is read after it.
    Atomics.store(this.#deviceArea, 0, word);
    return this.available();
  }

  disableKicks(): void {
    if (this.#fault !== undefined || this.#deviceArea.length === 0) return;
    Atomics.store(this.#deviceArea, 0, EVENT_DISABLE << 16);
  }

  available(): boolean {
    if (this.#fault !== undefined || this.#desc.length === 0) return false;
    return this.#isAvailable(Atomics.load(this.#state, this.#nextAvail * DESC_WORDS + LAST));
  }

  /** Available: AVAIL equals the wrap counter and USED doesn't (§2.8.1). */
  #isAvailable(word: number): boolean {
    return (word & STATE) === (this.#availWrap === 1 ? DESC_AVAIL : DESC_USED) << 16;
  }

  /** Walk the chain that begins at slot `first`, whose last word was read; returns its slots. */
  #walk(chain: Chain, first: number, firstWord: number): number {
    const walker = this.#walker;
    const desc = this.#desc;
    const state = this.#state;
    walker.begin(chain, 0);
    // No chain is longer than the slots that can be the driver's: ends every loop (§2.8.17).
    const limit = this.size - this.#busy;
    let slots = 0;
    let slot = first;
    let word = firstWord;
    for (;;) {
      const at = slot * DESC_WORDS;
      const flags = word >>> 16;
      // §2.8.5: a list is of one type. `add` refuses INDIRECT together with NEXT.
      if (slots > 0 && (flags & DESC_INDIRECT) !== 0) {
        throw new RingFault('indirect-with-next', flags);
      }
      walker.add(chain, desc, at, flags);
      slots++;
      if ((flags & DESC_NEXT) === 0) {
        // §2.8.6: the last descriptor has the buffer id.
        chain.head = word & 0xffff;
        return slots;
      }
      if (slots === limit) throw new RingFault('chain-too-long', limit);
      slot = slot + 1 === this.size ? 0 : slot + 1;
      const next = state[slot * DESC_WORDS + LAST];
      if (next === undefined) throw new RingFault('memory-vanished', slot);
      word = next;
    }
  }

  #release(head: number): number {
    const slots = this.#slots[head];
    if (slots === undefined || slots === 0) {
      throw new VirtqueueError('head-out-of-range', `buffer id ${head} is not in flight`);
    }
    this.#slots[head] = 0;
    this.#inFlight--;
    return slots;
  }

  /** Stop the queue; the first fault is kept. */
  #break(reason: FaultReason, head: number, detail: number, cause?: unknown): Popped {
    if (this.#fault === undefined) {
      this.#fault =
        cause === undefined ? { reason, head, detail } : { reason, head, detail, cause };
    }
    return Popped.Broken;
  }
}

/** An offset in the ring with a wrap counter in bit 15. */
function isPosition(value: number, size: number): boolean {
  return Number.isInteger(value) && value >= 0 && value <= 0xffff && (value & OFFSET_MASK) < size;
}
