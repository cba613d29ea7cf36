import type { QueueLayout } from './virtqueue.ts';

/** A run of guest memory; `buffers` of a chain are made of these. */
export interface GuestBuffer {
  /** Guest address. */
  readonly address: number;
  readonly length: number;
}

/** Memory a driver may build its rings in: a `MemoryRegion` is one. */
export interface DriverMemory {
  readonly start: number;
  readonly length: number;
  readonly u8: Uint8Array;
  readonly u16: Uint16Array;
  readonly u32: Uint32Array;
}

/** A descriptor as the driver writes it; `id` is meant for packed rings, `next` for split ones. */
export interface Descriptor {
  readonly address: number;
  readonly length: number;
  readonly flags: number;
  readonly next?: number;
  readonly id?: number;
}

export interface UsedElement {
  readonly id: number;
  readonly length: number;
}

export interface DriverOptions {
  readonly size: number;
  readonly indirect?: boolean;
  readonly eventIndex?: boolean;
  /** Bytes of `memory` to leave alone before the rings (0). */
  readonly offset?: number;
  /** Where to start, for a ring that continues: {avail: 0, used: 0}, packed {0x8000, 0x8000}. */
  readonly position?: { readonly avail: number; readonly used: number };
}

export interface AddOptions {
  /** Put the descriptors in an indirect table. */
  readonly indirect?: boolean;
}

/** The driver's side of a virtqueue. */
export interface DriverQueue {
  readonly size: number;
  readonly layout: QueueLayout;
  /** Chains added and not yet returned. */
  readonly outstanding: number;
  /** Memory for buffers; it is never given back. Throws a RangeError when there is no more. */
  allocate(length: number, alignment?: number): number;
  /** Offer a chain to the device; its id, or -1 when the ring is full. */
  add(
    readable: readonly GuestBuffer[],
    writable: readonly GuestBuffer[],
    options?: AddOptions,
  ): number;
  /** Whether the device wants a kick for what was added since the last call. */
  needsKick(): boolean;
  /** Take the next used entry into `usedId` and `usedLength`; false when there is none. */
  next(): boolean;
  readonly usedId: number;
  readonly usedLength: number;
  /** Take all used entries. */
  poll(): UsedElement[];
  /** Ask for a signal at the next used entry. True when one came meanwhile: poll again. */
  enableSignals(): boolean;
  /** No signals for now. */
  disableSignals(): void;
}
