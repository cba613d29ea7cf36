import { RpmbError } from './errors.ts';
import { BLOCK_BYTES } from './frame.ts';

/** Virtio device id (virtio 1.3 §5). */
export const VIRTIO_ID_RPMB = 28;

/** One virtqueue, no device features (virtio 1.3 §5.12.2, §5.12.3). */
export const RPMB_QUEUES = 1;

/** Capacity is counted in these (virtio 1.3 §5.12.4). */
export const CAPACITY_UNIT = 128 * 1024;
export const MAX_CAPACITY_UNITS = 0x80;

/**
 * What a new device allows in one request: 32 blocks, the most an eMMC part writes at once
 * (EN_RPMB_REL_WR). Not "no limit": known drivers take that 0 for "no block at all".
 */
export const DEFAULT_MAX_BLOCKS = 32;

/**
 * What "no limit" (0) means inside: beyond the 255 that a limit can say, and still a bound for
 * buffers and the redo record. The kernel takes 1024 pieces in one write, and a block is a piece.
 */
export const UNLIMITED_BLOCKS = 512;

/** What a device tells its driver. */
export interface RpmbLimits {
  /** Units of 128 KiB, 1 … 0x80. */
  readonly capacityUnits: number;
  /** Blocks in one request, 0 … 255; 0 is "no limit". */
  readonly maxWriteBlocks: number;
  readonly maxReadBlocks: number;
}

/** Blocks of 256 bytes: 512 … 65536. */
export function capacityBlocks(limits: RpmbLimits): number {
  return (limits.capacityUnits * CAPACITY_UNIT) / BLOCK_BYTES;
}

/** The blocks a request may really have. */
export function effectiveLimit(limit: number, limits: RpmbLimits): number {
  const most = limit === 0 ? UNLIMITED_BLOCKS : limit;
  return Math.min(most, capacityBlocks(limits));
}

/** The configuration space (virtio 1.3 §5.12.4): three bytes. */
export function rpmbConfig(limits: RpmbLimits): Uint8Array {
  return Uint8Array.of(limits.capacityUnits, limits.maxWriteBlocks, limits.maxReadBlocks);
}

/** Read a device's configuration space. Throws an RpmbError when it cannot be one of an RPMB. */
export function parseConfig(config: Uint8Array, what: string): RpmbLimits {
  const [capacityUnits, maxWriteBlocks, maxReadBlocks] = config;
  if (capacityUnits === undefined || maxWriteBlocks === undefined || maxReadBlocks === undefined) {
    const why = `its configuration space has ${config.length} bytes, not 3`;
    throw new RpmbError('TARGET', what, why, 'check that it is a virtio RPMB, device id 28');
  }
  // virtio 1.3 §5.12.4: 0x00 to 0x80 inclusive.
  if (capacityUnits > MAX_CAPACITY_UNITS) {
    const why = `it says that it has ${capacityUnits} × 128 KiB, more than there can be`;
    throw new RpmbError('TARGET', what, why, 'check that it is a virtio RPMB, device id 28');
  }
  return { capacityUnits, maxWriteBlocks, maxReadBlocks };
}
