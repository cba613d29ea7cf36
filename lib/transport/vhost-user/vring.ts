import type { OwnedFd } from '../../native/index.ts';
import type { QueueLayout, QueuePosition } from '../../virtio/index.ts';
import { Feature } from '../../virtio/index.ts';
import { type VringAddresses, violation } from '../../virtio/vhost-user-messages.ts';
import type { MemoryTable } from './memory-table.ts';

/** Rings up to this are served, whatever the device's own default. */
export const MAX_RING_SIZE = 1024;

/** Where a packed ring begins: offset 0, wrap counters 1 (virtio 1.3 §2.8.1). */
const PACKED_START = 0x8000;

/** One ring as the front end described it so far. */
export class Vring {
  readonly index: number;
  size = 0;
  addresses: VringAddresses | undefined;
  /** As SET_VRING_BASE gave it, or as the ring was left; undefined: at its beginning. */
  base: number | undefined;
  /** Undefined when there is none: before SET_VRING_KICK, and for a ring that is polled. */
  kick: OwnedFd | undefined;
  call: OwnedFd | undefined;
  error: OwnedFd | undefined;
  /** Between SET_VRING_KICK and GET_VRING_BASE (vhost-user, "Ring states"). */
  started = false;
  /** What SET_VRING_ENABLE said last. */
  enabled: boolean | undefined;
  /** What the backend was told, while it serves this ring. */
  running: QueueLayout | undefined;

  constructor(index: number) {
    this.index = index;
  }

  /**
   * Where its parts are in guest memory, or undefined when not all of it is known or mapped.
   * Throws a violation naming `request` for what can never be a ring.
   */
  layout(request: number, table: MemoryTable, features: bigint): QueueLayout | undefined {
    const { size, addresses } = this;
    if (size === 0 || addresses === undefined) return undefined;
    const packed = (features & Feature.RingPacked) !== 0n;
    if (!packed && (size & (size - 1)) !== 0) {
      throw violation(request, `queue ${this.index}: ${size} entries, no power of two`);
    }
    const parts = ringParts(addresses, size, packed);
    for (const part of parts) this.#checkAlignment(request, part);
    const [descriptor, driver, device] = parts.map((part) =>
      table.translate(part.address, part.length),
    );
    if (descriptor === undefined || driver === undefined || device === undefined) return undefined;
    return {
      size,
      desc: descriptor,
      driver,
      device,
      packed,
      indirect: (features & Feature.IndirectDesc) !== 0n,
      eventIndex: (features & Feature.EventIndex) !== 0n,
      position: this.#position(packed),
    };
  }

  /** Refuse addresses that are misaligned or outside the memory table. */
  checkAddresses(request: number, table: MemoryTable, features: bigint): void {
    const packed = (features & Feature.RingPacked) !== 0n;
    for (const part of ringParts(this.addresses!, Math.max(this.size, 1), packed)) {
      this.#checkAlignment(request, part);
      if (table.translate(part.address, part.length) === undefined) {
        throw violation(request, `${this.#where(part)}: not in the memory the front end shares`);
      }
    }
  }

  /** Keep where the ring was left. */
  stoppedAt({ avail, used }: QueuePosition, packed: boolean): void {
    this.base = packed ? (avail | (used << 16)) >>> 0 : avail;
  }

  /** What GET_VRING_BASE answers (vhost-user, "Vring descriptor indices for packed virtqueues"). */
  baseWord(packed: boolean): number {
    return this.base ?? (packed ? (PACKED_START | (PACKED_START << 16)) >>> 0 : 0);
  }

  /** GET_VRING_BASE: stopped, and it needs another SET_VRING_KICK. */
  stop(): void {
    this.started = false;
    this.kick?.close();
    this.kick = undefined;
  }

  /** The device was reset: all but the descriptors to signal, which front ends need not send again. */
  reset(): void {
    this.stop();
    this.size = 0;
    this.addresses = undefined;
    this.base = undefined;
    this.enabled = undefined;
  }

  /** The front end is gone. */
  close(): void {
    this.reset();
    this.call?.close();
    this.error?.close();
    this.call = undefined;
    this.error = undefined;
  }

  #where(part: RingPart): string {
    return `queue ${this.index}: ${part.name} at 0x${part.address.toString(16)}`;
  }

  #checkAlignment(request: number, part: RingPart): void {
    if (part.address % part.alignment !== 0n) {
      throw violation(request, `${this.#where(part)}: not aligned to ${part.alignment} bytes`);
    }
  }

  #position(packed: boolean): QueuePosition {
    const word = this.baseWord(packed);
    const avail = word & 0xffff;
    // A split ring has nothing in flight when it starts: both indexes are the same.
    return { avail, used: packed ? word >>> 16 : avail };
  }
}

interface RingPart {
  readonly name: string;
  readonly address: bigint;
  readonly length: number;
  readonly alignment: bigint;
}

/** In the order descriptor, driver, device area (virtio 1.3 §2.7, §2.8; event fields included). */
function ringParts(addresses: VringAddresses, size: number, packed: boolean): RingPart[] {
  const { descriptor, available, used } = addresses;
  return [
    { name: 'descriptors', address: descriptor, length: 16 * size, alignment: 16n },
    packed
      ? { name: 'driver events', address: available, length: 4, alignment: 4n }
      : { name: 'avail ring', address: available, length: 6 + 2 * size, alignment: 2n },
    packed
      ? { name: 'device events', address: used, length: 4, alignment: 4n }
      : { name: 'used ring', address: used, length: 6 + 8 * size, alignment: 4n },
  ];
}

/** Whether two layouts are the same ring, wherever it stands. */
export function sameRing(a: QueueLayout, b: QueueLayout): boolean {
  return (
    a.size === b.size &&
    a.desc === b.desc &&
    a.driver === b.driver &&
    a.device === b.device &&
    a.packed === b.packed &&
    a.indirect === b.indirect &&
    a.eventIndex === b.eventIndex
  );
}
