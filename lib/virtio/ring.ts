import type { Access, GuestMemory, MemoryRegion } from './guest-memory.ts';
import type { FaultReason } from './virtqueue.ts';

/** Descriptor flags, the same bits in both ring kinds (virtio 1.3 §2.7.5, §2.8.3, §2.8.6, §2.8.7). */
export const DESC_NEXT = 1;
export const DESC_WRITE = 2;
export const DESC_INDIRECT = 4;
/** Packed only (virtio 1.3 §2.8.1): available and used, each compared with a wrap counter. */
export const DESC_AVAIL = 1 << 7;
export const DESC_USED = 1 << 15;

export const DESC_BYTES = 16;
export const DESC_WORDS = 4;

/** The largest queue either ring kind allows (virtio 1.3 §2.7, §2.8). */
export const MAX_QUEUE_SIZE = 32768;

/** Values of the packed event suppression flags (virtio 1.3 §2.8.10). */
export const EVENT_ENABLE = 0;
export const EVENT_DISABLE = 1;
export const EVENT_DESC = 2;

/** 16-bit words of the split avail and used rings: flags, index, first entry (virtio 1.3 §2.7.6, §2.7.8). */
export const RING_FLAGS = 0;
export const RING_INDEX = 1;
export const RING_ENTRIES = 2;

/** The avail ring's and the used ring's suppression flag of the split ring (virtio 1.3 §2.7.6, §2.7.8). */
export const AVAIL_NO_INTERRUPT = 1;
export const USED_NO_NOTIFY = 1;

/** A queue that cannot be built as the driver laid it out, or a call that breaks a queue's contract. */
export class VirtqueueError extends RangeError {
  readonly code = 'ERR_VDUSE_RING';
  readonly reason: FaultReason;

  constructor(reason: FaultReason, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'VirtqueueError';
    this.reason = reason;
  }
}

/** Thrown while a chain is walked; the queue turns it into its `fault`. It never leaves this folder. */
export class RingFault extends Error {
  readonly reason: FaultReason;
  readonly detail: number;

  constructor(reason: FaultReason, detail: number, options?: ErrorOptions) {
    super(reason, options);
    this.reason = reason;
    this.detail = detail;
  }
}

/**
 * Whether the entry at `event` is among those from `old` up to `now`: then a notification is due
 * (virtio 1.3 §2.7.7.2, §2.7.10.1). 16-bit indices that wrap around.
 */
export function needEvent(event: number, now: number, old: number): boolean {
  return ((now - event - 1) & 0xffff) < ((now - old) & 0xffff);
}

/** One part of a ring: where it is, what the device does there, what it is called in messages. */
export interface RingPart {
  readonly name: string;
  readonly address: number;
  readonly length: number;
  /** virtio 1.3 §2.7, §2.8. */
  readonly alignment: number;
  readonly access: Access;
}

export interface ResolvedPart {
  readonly region: MemoryRegion;
  readonly offset: number;
}

/**
 * Find the region that holds a ring part as a whole, to its last byte: a ring is contiguous
 * (virtio 1.3 §2.7, §2.8) and is used without further checks once it has been resolved.
 */
export function resolvePart(memory: GuestMemory, part: RingPart): ResolvedPart {
  const where = `${part.name} at 0x${part.address.toString(16)}`;
  if (!Number.isSafeInteger(part.address) || part.address < 0) {
    throw new VirtqueueError('ring-layout', `${where}: address not in 0 … 2^53-1`);
  }
  if (part.address % part.alignment !== 0) {
    throw new VirtqueueError('ring-layout', `${where}: not aligned to ${part.alignment} bytes`);
  }
  let region: MemoryRegion | undefined;
  try {
    region = memory.find(part.address);
  } catch (cause) {
    throw new VirtqueueError('ring-unmapped', `${where}: cannot be mapped`, { cause });
  }
  if (region === undefined) {
    throw new VirtqueueError('ring-unmapped', `${where}: not in guest memory`);
  }
  const offset = part.address - region.start;
  if (part.length > region.length - offset || offset + part.length > region.u8.length) {
    throw new VirtqueueError(
      'ring-unmapped',
      `${where}: its ${part.length} bytes go beyond the memory region they start in`,
    );
  }
  if ((region.access & part.access) !== part.access) {
    throw new VirtqueueError('ring-unmapped', `${where}: the region does not allow the access`);
  }
  // A region may begin anywhere; its words are counted from there.
  if (offset % Math.min(part.alignment, 4) !== 0) {
    throw new VirtqueueError('ring-layout', `${where}: its region begins at an odd address`);
  }
  return { region, offset };
}

/** The 16-bit words of a resolved part. */
export function words16(part: ResolvedPart, count: number): Uint16Array {
  return part.region.u16.subarray(part.offset / 2, part.offset / 2 + count);
}

/**
 * The 32-bit words of a resolved part, signed: a number from 2^31 on that passes through Atomics
 * would be allocated.
 */
export function words32Signed(part: ResolvedPart, count: number): Int32Array {
  const words = words32(part, count);
  return new Int32Array(words.buffer, words.byteOffset, count);
}

/** The 32-bit words of a resolved part. */
export function words32(part: ResolvedPart, count: number): Uint32Array {
  return part.region.u32.subarray(part.offset / 4, part.offset / 4 + count);
}
