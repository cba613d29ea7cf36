/** What the device may do with a region; the values of VDUSE's `perm`. */
export const Access = { Read: 1, Write: 2, ReadWrite: 3 } as const;
export type Access = (typeof Access)[keyof typeof Access];

/** A run of guest memory that is mapped here. */
export interface MemoryRegion {
  /** Guest address (IOVA or guest physical) of its first byte; a safe integer. */
  readonly start: number;
  /** Bytes, at most 4 GiB. */
  readonly length: number;
  readonly access: Access;
  /** Where its first byte lies in this process; what kernel I/O vectors are made of. */
  readonly address: number;
  /** Its bytes: `u8[0]` is guest address `start`. Length 0 once unmapped. */
  readonly u8: Uint8Array;
  /** The same bytes as little-endian words, counted from `start` (which need not be aligned). */
  readonly u16: Uint16Array;
  readonly u32: Uint32Array;
}

/**
 * Guest memory: a table of regions that come and go. Regions do not overlap.
 * A lookup that finds nothing asks `resolve` (VDUSE maps on demand); a miss is never remembered.
 */
export class GuestMemory {
  #regions: MemoryRegion[] = [];
  #last: MemoryRegion | undefined;
  readonly #resolve: ((address: number) => MemoryRegion | undefined) | undefined;

  constructor(resolve?: (address: number) => MemoryRegion | undefined) {
    this.#resolve = resolve;
  }

  get regions(): readonly MemoryRegion[] {
    return this.#regions;
  }

  /** The region that was found last, which most lookups are for. */
  get last(): MemoryRegion | undefined {
    return this.#last;
  }

  /** The region that holds `address`, or undefined. Throws what `resolve` throws. */
  find(address: number): MemoryRegion | undefined {
    const last = this.#last;
    if (last !== undefined && address >= last.start && address - last.start < last.length) {
      return last;
    }
    return this.search(address) ?? this.#resolved(address);
  }

  /** The region that holds `address` among those that are here: asks nobody and throws nothing. */
  search(address: number): MemoryRegion | undefined {
    let low = 0;
    let high = this.#regions.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const region = this.#regions[middle]!;
      if (address < region.start) high = middle;
      else if (address - region.start >= region.length) low = middle + 1;
      else return (this.#last = region);
    }
    return undefined;
  }

  /** Add a region. Throws a RangeError when it overlaps another or its numbers make no sense. */
  add(region: MemoryRegion): void {
    const end = region.start + region.length;
    if (!Number.isSafeInteger(region.start) || !Number.isSafeInteger(end) || region.start < 0) {
      throw new RangeError(
        `memory region at ${region.start} of ${region.length} bytes: not in 0 … 2^53-1`,
      );
    }
    if (region.length <= 0 || region.length > 2 ** 32) {
      throw new RangeError(`memory region of ${region.length} bytes: not in 1 … 2^32`);
    }
    for (const other of this.#regions) {
      if (region.start < other.start + other.length && other.start < end) {
        throw new RangeError(
          `memory region 0x${region.start.toString(16)}+0x${region.length.toString(16)} overlaps 0x${other.start.toString(16)}+0x${other.length.toString(16)}`,
        );
      }
    }
    this.#regions.push(region);
    this.#regions.sort((a, b) => a.start - b.start);
  }

  /** Take out every region that overlaps [start, last] (both clamped by the caller to safe integers); returns them. */
  removeRange(start: number, last: number): MemoryRegion[] {
    const removed = this.#regions.filter((r) => r.start <= last && r.start + r.length - 1 >= start);
    if (removed.length > 0) {
      this.#regions = this.#regions.filter((r) => !removed.includes(r));
      this.#last = undefined;
    }
    return removed;
  }

  /** Take out all regions and return them. */
  clear(): MemoryRegion[] {
    const all = this.#regions;
    this.#regions = [];
    this.#last = undefined;
    return all;
  }

  #resolved(address: number): MemoryRegion | undefined {
    const resolved = this.#resolve?.(address);
    if (resolved !== undefined) {
      if (address < resolved.start || address - resolved.start >= resolved.length) {
        throw new RangeError(
          `memory region 0x${resolved.start.toString(16)}+0x${resolved.length.toString(16)} does not hold 0x${address.toString(16)}`,
        );
      }
      this.add(resolved);
      this.#last = resolved;
    }
    return resolved;
  }
}
