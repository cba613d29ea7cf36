import type { Chain } from './chain.ts';
import { Access, type GuestMemory } from './guest-memory.ts';
import {
  AVAIL_NO_INTERRUPT,
  DESC_BYTES,
  DESC_NEXT,
  DESC_WORDS,
  MAX_QUEUE_SIZE,
  needEvent,
  RING_ENTRIES,
  RING_FLAGS,
  RING_INDEX,
  RingFault,
  resolvePart,
  USED_NO_NOTIFY,
  VirtqueueError,
  words16,
  words32,
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

/** Half of the indices: so far ahead an event does not come. */
const EVENT_FAR = 0x8000;

/** The device's side of a split virtqueue (virtio 1.3 §2.7). */
export class SplitQueue implements Virtqueue {
  readonly size: number;
  readonly #mask: number;
  readonly #eventIndex: boolean;
  readonly #indirect: boolean;
  readonly #walker: ChainWalker;

  readonly #desc: Uint32Array;
  readonly #avail: Uint16Array;
  /** The used ring in 16-bit words for flags, index and avail_event, in 32-bit words for its entries. */
  readonly #used16: Uint16Array;
  readonly #used32: Uint32Array;
  /** Where avail_event and used_event stand: each at the end of the ring its writer owns. */
  readonly #availEvent: number;
  readonly #usedEvent: number;

  /** Next avail ring index to take, and the driver's index when it was last looked at. */
  #nextAvail: number;
  #seenAvail: number;
  /** Next used ring index to stage, and the one that the driver was shown. */
  #nextUsed: number;
  #shownUsed: number;
  /** Used entries were published since construction: used_event is to be compared with ours. */
  #signalled = false;

  /** One byte a head: 1 while in flight. */
  readonly #taken: Uint8Array;
  #inFlight = 0;
  #fault: QueueFault | undefined;

  constructor(memory: GuestMemory, layout: QueueLayout) {
    const { size, position } = layout;
    // virtio 1.3 §2.7: a power of two, at most 32768.
    if (!Number.isInteger(size) || size < 1 || size > MAX_QUEUE_SIZE || (size & (size - 1)) !== 0) {
      throw new VirtqueueError('ring-layout', `split queue of ${size} entries: no power of two`);
    }
    if (!isIndex(position.avail) || !isIndex(position.used)) {
      throw new VirtqueueError(
        'ring-layout',
        `split queue at position ${position.avail}, ${position.used}: not in 0 … 65535`,
      );
    }
    const desc = resolvePart(memory, {
      name: 'descriptor table',
      address: layout.desc,
      length: DESC_BYTES * size,
      alignment: 16,
      access: Access.Read,
    });
    // Header, entries, and the event field even where EVENT_IDX was not negotiated (§2.7).
    const avail = resolvePart(memory, {
      name: 'avail ring',
      address: layout.driver,
      length: 6 + 2 * size,
      alignment: 2,
      access: Access.Read,
    });
    const used = resolvePart(memory, {
      name: 'used ring',
      address: layout.device,
      length: 6 + 8 * size,
      alignment: 4,
      access: Access.Write,
    });
    this.size = size;
    this.#mask = size - 1;
    this.#eventIndex = layout.eventIndex;
    this.#indirect = layout.indirect;
    this.#walker = new ChainWalker(memory, layout.indirect, false);
    this.#desc = words32(desc, DESC_WORDS * size);
    this.#avail = words16(avail, RING_ENTRIES + size + 1);
    this.#used16 = words16(used, RING_ENTRIES + 4 * size + 1);
    this.#used32 = words32(used, 1 + 2 * size);
    this.#usedEvent = RING_ENTRIES + size;
    this.#availEvent = RING_ENTRIES + 4 * size;
    this.#nextAvail = position.avail;
    this.#seenAvail = position.avail;
    this.#nextUsed = position.used;
    this.#shownUsed = position.used;
    this.#taken = new Uint8Array(size);
  }

  get fault(): QueueFault | undefined {
    return this.#fault;
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  get position(): QueuePosition {
    return { avail: this.#nextAvail, used: this.#nextUsed };
  }

  pop(chain: Chain): Popped {
    if (this.#fault !== undefined) return Popped.Broken;
    const next = this.#nextAvail;
    if (next === this.#seenAvail && !this.#look()) {
      return this.#fault === undefined ? Popped.None : Popped.Broken;
    }
    const head = this.#avail[RING_ENTRIES + (next & this.#mask)];
    if (head === undefined) return this.#break('memory-vanished', -1, next);
    if (head >= this.size) return this.#break('head-out-of-range', head, next);
    if (this.#taken[head] !== 0) return this.#break('head-in-flight', head, next);
    try {
      this.#walk(chain, head);
    } catch (error) {
      chain.reset(head);
      if (!(error instanceof RingFault)) throw error;
      return this.#break(error.reason, head, error.detail, error.cause);
    }
    this.#taken[head] = 1;
    this.#inFlight++;
    this.#nextAvail = (next + 1) & 0xffff;
    return Popped.One;
  }

  complete(head: number, written: number): void {
    this.#release(head);
    const used = this.#used32;
    const at = 1 + 2 * (this.#nextUsed & this.#mask);
    used[at] = head;
    used[at + 1] = written;
    this.#nextUsed = (this.#nextUsed + 1) & 0xffff;
  }

  fail(reason: FaultReason, head: number, detail: number): void {
    if (head >= 0) this.#release(head);
    this.#break(reason, head, detail);
  }

  publish(): boolean {
    const old = this.#shownUsed;
    const now = this.#nextUsed;
    if (old === now) return false;
    if (this.#used16.length === 0 || this.#avail.length === 0) {
      this.#break('memory-vanished', -1, old);
      return false;
    }
    this.#shownUsed = now;
    // A sequentially consistent store: the entries are written before it (§2.7.8.2), the driver's
    // wish is read after it.
    Atomics.store(this.#used16, RING_INDEX, now);
    if (!this.#eventIndex)
      return (Atomics.load(this.#avail, RING_FLAGS) & AVAIL_NO_INTERRUPT) === 0;
    const first = !this.#signalled;
    this.#signalled = true;
    return first || needEvent(Atomics.load(this.#avail, this.#usedEvent), now, old);
  }

  enableKicks(): boolean {
    if (this.#fault !== undefined || this.#used16.length === 0) return false;
    // The store is a full fence: the driver's index is read after it.
    if (this.#eventIndex) Atomics.store(this.#used16, this.#availEvent, this.#nextAvail);
    else Atomics.store(this.#used16, RING_FLAGS, 0);
    return this.available();
  }

  disableKicks(): void {
    if (this.#fault !== undefined || this.#used16.length === 0) return;
    // Where the driver stands it would kick for its next chain (§2.7.10). Only a hint, so no fence.
    if (this.#eventIndex) this.#used16[this.#availEvent] = this.#nextAvail ^ EVENT_FAR;
    else Atomics.store(this.#used16, RING_FLAGS, USED_NO_NOTIFY);
  }

  available(): boolean {
    if (this.#fault !== undefined) return false;
    if (this.#nextAvail !== this.#seenAvail) return true;
    return this.#avail.length !== 0 && Atomics.load(this.#avail, RING_INDEX) !== this.#nextAvail;
  }

  /** Read the driver's index; true when there is something to take. */
  #look(): boolean {
    if (this.#avail.length === 0) {
      this.#break('memory-vanished', -1, this.#nextAvail);
      return false;
    }
    // Mostly asked when all was taken: a plain load says so, and `enableKicks` asks again before a
    // sleep. The entries are read after the atomic one.
    if (this.#avail[RING_INDEX] === this.#nextAvail) return false;
    const index = Atomics.load(this.#avail, RING_INDEX);
    const ahead = (index - this.#nextAvail) & 0xffff;
    if (ahead === 0) return false;
    // No more than the whole ring can be available (§2.7.13).
    if (ahead > this.size) {
      this.#break('avail-index-jump', -1, index);
      return false;
    }
    this.#seenAvail = index;
    return true;
  }

  #walk(chain: Chain, head: number): void {
    const walker = this.#walker;
    const desc = this.#desc;
    walker.begin(chain, head);
    // Where tables are allowed, nearly every chain is one.
    if (!this.#indirect && walker.addPlain(chain, desc, 0, this.size, head)) return;
    let index = head;
    // A chain in the table can't have more descriptors than the table (§2.7.5): ends every loop.
    for (let left = this.size; left > 0; left--) {
      const at = index * DESC_WORDS;
      const last = desc[at + 3];
      if (last === undefined) throw new RingFault('memory-vanished', index);
      walker.add(chain, desc, at, last & 0xffff);
      if ((last & DESC_NEXT) === 0) return;
      index = last >>> 16;
      if (index >= this.size) throw new RingFault('next-out-of-range', index);
    }
    throw new RingFault('chain-too-long', this.size);
  }

  #release(head: number): void {
    if (this.#taken[head] !== 1) {
      throw new VirtqueueError('head-out-of-range', `head ${head} is not in flight`);
    }
    this.#taken[head] = 0;
    this.#inFlight--;
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

function isIndex(value: number): boolean {
  return Number.isInteger(value) && value >= 0 && value <= 0xffff;
}
