import {
  MAX_DISCARD_SECTORS,
  MAX_RANGES,
  MAX_ZERO_SECTORS,
  SECTOR_BYTES,
  SERIAL_BYTES,
  VIRTIO_BLK_F_BLK_SIZE,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_MQ,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_F_SEG_MAX,
  VIRTIO_BLK_F_TOPOLOGY,
  VIRTIO_BLK_F_WRITE_ZEROES,
} from './features.ts';

/** What one disk is like, whoever drives it. A plain object that `postMessage` carries. */
export interface BlockOptions {
  /** Bytes, a multiple of `blockSize`. */
  readonly capacity: number;
  /** The logical block: what requests must be multiples of. */
  readonly blockSize: 512 | 4096;
  /** What the medium likes best; a power of two, at least `blockSize`. */
  readonly physicalBlockSize: number;
  readonly readOnly: boolean;
  readonly queues: number;
  readonly queueSize: number;
  /** At most 20 bytes. */
  readonly serial: string;
  /** Ranges can be discarded. */
  readonly discard: boolean;
  /** Offer VIRTIO_BLK_F_CONFIG_WCE, a cache the driver can switch (vhost-user only). */
  readonly switchableCache?: boolean;
}

/** Options that make no disk. */
export class BlockOptionsError extends RangeError {
  readonly code = 'ERR_VDUSE_BLOCK_OPTIONS';
  override readonly name = 'BlockOptionsError';
}

/** Throws a `BlockOptionsError` that names the option. */
export function checkBlockOptions(options: BlockOptions): void {
  const { capacity, blockSize, physicalBlockSize, queues, queueSize } = options;
  if (blockSize !== 512 && blockSize !== 4096) {
    throw new BlockOptionsError(`block size ${blockSize}: not supported (give 512 or 4096)`);
  }
  if (!Number.isSafeInteger(capacity) || capacity < blockSize || capacity % blockSize !== 0) {
    throw new BlockOptionsError(
      `capacity ${capacity}: not a whole number of blocks (give a multiple of ${blockSize})`,
    );
  }
  if (!Number.isInteger(Math.log2(physicalBlockSize)) || physicalBlockSize < blockSize) {
    throw new BlockOptionsError(
      `physical block size ${physicalBlockSize}: not a power of two from the block size up (give ${blockSize})`,
    );
  }
  if (!Number.isInteger(queues) || queues < 1 || queues > 0xffff) {
    throw new BlockOptionsError(`${queues} queues: not possible (give 1 to 65535)`);
  }
  if (!Number.isInteger(Math.log2(queueSize)) || queueSize < 2 || queueSize > 1024) {
    throw new BlockOptionsError(
      `queue size ${queueSize}: not possible (give a power of two from 2 to 1024)`,
    );
  }
  encodeSerial(options.serial);
}

/** The answer to GET_ID: "NUL only if shorter" than its 20 bytes. */
export function encodeSerial(serial: string): Uint8Array {
  const bytes = new TextEncoder().encode(serial);
  if (bytes.length > SERIAL_BYTES || bytes.includes(0)) {
    throw new BlockOptionsError(
      `serial '${serial}': not possible (give at most ${SERIAL_BYTES} bytes)`,
    );
  }
  const padded = new Uint8Array(SERIAL_BYTES);
  padded.set(bytes);
  return padded;
}

/**
 * The block features to offer. Without SIZE_MAX a segment may have any length, which a file does not
 * mind; offering it would only cut large requests into more descriptors. GEOMETRY, LIFETIME,
 * SECURE_ERASE and ZONED say nothing true of a file.
 */
export function blockFeatures(options: BlockOptions): bigint {
  // FLUSH always, as a device should (virtio 1.3 §5.2.5.2), read-only or not.
  let features =
    VIRTIO_BLK_F_SEG_MAX | VIRTIO_BLK_F_BLK_SIZE | VIRTIO_BLK_F_FLUSH | VIRTIO_BLK_F_TOPOLOGY;
  if (options.queues > 1) features |= VIRTIO_BLK_F_MQ;
  if (options.switchableCache) features |= VIRTIO_BLK_F_CONFIG_WCE;
  if (options.readOnly) return features | VIRTIO_BLK_F_RO;
  if (options.discard) features |= VIRTIO_BLK_F_DISCARD;
  return features | VIRTIO_BLK_F_WRITE_ZEROES;
}

/**
 * struct virtio_blk_config whole, as far as its zoned part: a front end asks for as much as its own
 * headers know, and the kernel refuses one that asks for more than there is (E2BIG).
 */
export const CONFIG_BYTES = 96;

/** Offset of `writeback`, the only field a driver may write (CONFIG_WCE). */
export const CONFIG_WRITEBACK = 32;

/** The configuration space (virtio 1.3 §5.2.4), little-endian. Fields not offered are zero. */
export function blockConfig(options: BlockOptions): Uint8Array {
  const config = new Uint8Array(CONFIG_BYTES);
  const view = new DataView(config.buffer);
  const { blockSize, physicalBlockSize } = options;
  view.setBigUint64(0, BigInt(options.capacity / SECTOR_BYTES), true);
  view.setUint32(12, segMax(options.queueSize), true);
  view.setUint32(20, blockSize, true);
  view.setUint8(24, Math.log2(physicalBlockSize / blockSize));
  view.setUint16(26, physicalBlockSize / blockSize, true);
  if (options.switchableCache) view.setUint8(CONFIG_WRITEBACK, 1);
  view.setUint16(34, options.queues, true);
  if (options.readOnly) return config;
  if (options.discard) {
    view.setUint32(36, MAX_DISCARD_SECTORS, true);
    view.setUint32(40, MAX_RANGES, true);
    view.setUint32(44, physicalBlockSize / SECTOR_BYTES, true);
  }
  view.setUint32(48, MAX_ZERO_SECTORS, true);
  view.setUint32(52, MAX_RANGES, true);
  view.setUint8(56, 1);
  return config;
}

/**
 * A chain is never longer than its ring, in an indirect table either (virtio 1.3 §2.7.5.3.1), and
 * header and status take two descriptors of it. 126 is what other devices offer: 504 KiB of
 * scattered pages, beyond which Linux's own limits cut.
 */
function segMax(queueSize: number): number {
  return Math.max(1, Math.min(126, queueSize - 2));
}
