import { type Chain, MAX_CHAIN, MAX_SEGMENTS } from './chain.ts';
import { Access, type GuestMemory, type MemoryRegion } from './guest-memory.ts';
import { DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WORDS, DESC_WRITE, RingFault } from './ring.ts';
import type { FaultReason } from './virtqueue.ts';

const TWO_32 = 2 ** 32;
/** An address is refused when its upper word reaches this: from 2^53 on a number would be rounded. */
const HIGH_LIMIT = 2 ** 21;
/** The word of a descriptor that holds flags and `next` (split), id and flags (packed). */
const LAST = 3;
/** `next` has 16 bits: no longer table can be reached (virtio 1.3 §2.7.5). */
const MAX_TABLE = 65536;

/**
 * Turns descriptors into the segments of a `Chain`, for both ring kinds. It trusts nothing: each
 * word of a descriptor is read once, by the caller or in `addTable`, and checked here at its use.
 * What is wrong is thrown as a `RingFault`.
 */
export class ChainWalker {
  readonly #memory: GuestMemory;
  readonly #indirect: boolean;
  readonly #packed: boolean;
  /** One descriptor of a table that cannot be read in place. */
  readonly #entry8 = new Uint8Array(DESC_BYTES);
  readonly #entry32 = new Uint32Array(this.#entry8.buffer);
  /** Descriptors the chain may still have. */
  #left = 0;
  /** A writable descriptor was seen: only such may follow. */
  #writable = false;

  constructor(memory: GuestMemory, indirect: boolean, packed: boolean) {
    this.#memory = memory;
    this.#indirect = indirect;
    this.#packed = packed;
  }

  /** Begin a chain. */
  begin(chain: Chain, head: number): void {
    chain.reset(head);
    this.#left = MAX_CHAIN;
    this.#writable = false;
  }

  /**
   * Add the whole chain that begins with descriptor `index` of the split table at word `base`, if it is
   * like nearly all: buffers that are not empty, each in one region, readable ones first, as many as
   * the record has room for. False otherwise: then the chain is as it was, and what follows reads the
   * descriptors anew and says what is wrong. One loop that calls nothing: V8 keeps it all in registers.
   */
  addPlain(
    chain: Chain,
    words: Uint32Array,
    base: number,
    entries: number,
    index: number,
  ): boolean {
    let region = this.#memory.last;
    if (region === undefined || chain.count !== 0) return false;
    const { regions, offsets, lengths } = chain;
    let count = 0;
    let readable = 0;
    let readableBytes = 0;
    let writableBytes = 0;
    for (;;) {
      if (index >= entries || count === offsets.length || count === MAX_CHAIN) return false;
      const at = base + (index & 0xffff) * DESC_WORDS;
      const last = words[at + LAST];
      if (last === undefined || (last & DESC_INDIRECT) !== 0) return false;
      const address = words[at + 1]! * TWO_32 + words[at]!;
      const length = words[at + 2]!;
      let offset = address - region.start;
      // An address beyond 2^53 was rounded, to one that is outside all the same.
      if (offset < 0 || offset >= region.length) {
        region = this.#memory.search(address);
        if (region === undefined) return false;
        offset = address - region.start;
      }
      // Offsets have 32 bits, as a region has at most 2^32 bytes: as integers they are quicker.
      const from = offset >>> 0;
      if (length === 0 || length > region.length - from) return false;
      if ((last & DESC_WRITE) !== 0) {
        if ((region.access & Access.Write) === 0) return false;
        writableBytes += length;
      } else {
        if (readable !== count || (region.access & Access.Read) === 0) return false;
        readable++;
        readableBytes += length;
      }
      // Mostly the same as before, and a reference costs more to store than to compare.
      if (regions[count] !== region) regions[count] = region;
      offsets[count] = from;
      lengths[count] = length;
      count++;
      if ((last & DESC_NEXT) === 0) break;
      index = last >>> 16;
    }
    chain.count = count;
    chain.readable = readable;
    chain.readableBytes = readableBytes;
    chain.writableBytes = writableBytes;
    return true;
  }

  /** Add the descriptor at word `at` of the ring, whose `flags` were read: its buffer or its table. */
  add(chain: Chain, words: Uint32Array, at: number, flags: number): void {
    if ((flags & DESC_INDIRECT) === 0) {
      this.#addBuffer(chain, words, at, flags);
      return;
    }
    if (!this.#indirect) throw new RingFault('indirect-not-negotiated', flags);
    // virtio 1.3 §2.7.5.3.1, §2.8.19: never both. The WRITE flag is ignored here (§2.7.5.3.2, §2.8.7).
    if ((flags & DESC_NEXT) !== 0) throw new RingFault('indirect-with-next', flags);
    this.#addTable(chain, words, at);
  }

  #addTable(chain: Chain, ring: Uint32Array, descriptor: number): void {
    const low = ring[descriptor]!;
    const high = ring[descriptor + 1]!;
    const length = ring[descriptor + 2]!;
    const entries = length >>> 4;
    if (entries === 0 || (length & 15) !== 0 || entries > MAX_TABLE) {
      throw new RingFault('indirect-length', length);
    }
    if (high >= HIGH_LIMIT) throw new RingFault('address-too-large', high * TWO_32 + low);
    const address = high * TWO_32 + low;
    const region = this.#locate(address, 'indirect-unmapped');
    if ((region.access & Access.Read) === 0) throw new RingFault('indirect-unmapped', address);
    const offset = address - region.start;
    // The table may stand anywhere: read it in place where that is possible.
    const inPlace = length <= region.length - offset && (offset & 3) === 0;
    const base = offset >>> 2;
    if (inPlace && !this.#packed && this.addPlain(chain, region.u32, base, entries, 0)) return;
    let index = 0;
    for (;;) {
      let words = region.u32;
      let at = base + index * 4;
      if (!inPlace) {
        this.#gather(address + index * DESC_BYTES);
        words = this.#entry32;
        at = 0;
      }
      const last = words[at + LAST];
      if (last === undefined) throw new RingFault('memory-vanished', address);
      if (this.#packed) {
        // virtio 1.3 §2.8.7: entries follow one another, WRITE is the only flag and the others
        // are ignored.
        this.#addBuffer(chain, words, at, last >>> 16);
        if (++index === entries) return;
      } else {
        // virtio 1.3 §2.7.5.3.1: one level of tables.
        if ((last & DESC_INDIRECT) !== 0) throw new RingFault('indirect-in-indirect', index);
        this.#addBuffer(chain, words, at, last & 0xffff);
        if ((last & DESC_NEXT) === 0) return;
        index = last >>> 16;
        if (index >= entries) throw new RingFault('next-out-of-range', index);
      }
    }
  }

  /** Descriptors are passed by place: a 32-bit number passed by value may cost an allocation. */
  #addBuffer(chain: Chain, words: Uint32Array, at: number, flags: number): void {
    const low = words[at]!;
    const high = words[at + 1]!;
    const length = words[at + 2]!;
    // Bounds every loop: also one in the table (virtio 1.3 §2.7.5.2).
    if (this.#left-- === 0) throw new RingFault('chain-too-long', MAX_CHAIN);
    const writable = (flags & DESC_WRITE) !== 0;
    if (writable) this.#writable = true;
    // virtio 1.3 §2.7.4.2, §2.8.17: readable parts come first.
    else if (this.#writable) throw new RingFault('readable-after-writable', chain.count);
    if (length === 0) return;
    if (high >= HIGH_LIMIT) throw new RingFault('address-too-large', high * TWO_32 + low);
    let address = high * TWO_32 + low;
    let left = length;
    for (;;) {
      const region = this.#locate(address, 'buffer-unmapped');
      if ((region.access & (writable ? Access.Write : Access.Read)) === 0) {
        throw new RingFault(writable ? 'buffer-not-writable' : 'buffer-not-readable', address);
      }
      // Hostile memory regions may be tiny: so many segments are enough for anybody.
      if (chain.count === MAX_SEGMENTS) throw new RingFault('chain-too-long', chain.count);
      // A region has at most 2^32 bytes, so 32 bits of the difference are all of it: integers.
      const offset = (address - region.start) >>> 0;
      const here = region.length - offset;
      if (left <= here) {
        chain.add(region, offset, left, writable);
        return;
      }
      chain.add(region, offset, here, writable);
      address += here;
      left -= here;
    }
  }

  /** Copy the descriptor at `address`, which may cross regions, into the scratch entry. */
  #gather(address: number): void {
    let done = 0;
    while (done < DESC_BYTES) {
      const region = this.#locate(address + done, 'indirect-unmapped');
      if ((region.access & Access.Read) === 0) {
        throw new RingFault('indirect-unmapped', address + done);
      }
      if (region.u8.length === 0) throw new RingFault('memory-vanished', address + done);
      const offset = address + done - region.start;
      const bytes = Math.min(DESC_BYTES - done, region.length - offset);
      for (let i = 0; i < bytes; i++) this.#entry8[done + i] = region.u8[offset + i]!;
      done += bytes;
    }
  }

  /** The region that holds `address`. A resolver that throws is a fault like a miss. */
  #locate(address: number, reason: FaultReason): MemoryRegion {
    let region: MemoryRegion | undefined;
    try {
      region = this.#memory.find(address);
    } catch (cause) {
      throw new RingFault(reason, address, { cause });
    }
    if (region === undefined) throw new RingFault(reason, address);
    return region;
  }
}
