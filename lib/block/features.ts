/** Feature bits of the block device (virtio 1.3 §5.2.3). Ring features belong to the transports. */
export const VIRTIO_BLK_F_SIZE_MAX = 1n << 1n;
export const VIRTIO_BLK_F_SEG_MAX = 1n << 2n;
export const VIRTIO_BLK_F_RO = 1n << 5n;
export const VIRTIO_BLK_F_BLK_SIZE = 1n << 6n;
export const VIRTIO_BLK_F_FLUSH = 1n << 9n;
export const VIRTIO_BLK_F_TOPOLOGY = 1n << 10n;
/** vhost-user only: VDUSE refuses a block device that offers it. */
export const VIRTIO_BLK_F_CONFIG_WCE = 1n << 11n;
export const VIRTIO_BLK_F_MQ = 1n << 12n;
export const VIRTIO_BLK_F_DISCARD = 1n << 13n;
export const VIRTIO_BLK_F_WRITE_ZEROES = 1n << 14n;

/** Virtio device id (virtio 1.3 §5). */
export const VIRTIO_ID_BLOCK = 2;

/** Requests are counted in sectors of 512 bytes whatever the block size (virtio 1.3 §5.2.6). */
export const SECTOR_BYTES = 512;

/** struct virtio_blk_req's type (virtio 1.3 §5.2.6). */
export const BlockType = {
  In: 0,
  Out: 1,
  Flush: 4,
  GetId: 8,
  Discard: 11,
  WriteZeroes: 13,
} as const;

/** The status byte (virtio 1.3 §5.2.6). */
export const BlockStatus = { Ok: 0, IoError: 1, Unsupported: 2 } as const;

/** Bytes of a serial number (VIRTIO_BLK_T_GET_ID). */
export const SERIAL_BYTES = 20;

/**
 * Segments in one discard or zeroing. Linux merges as many ranges of an fstrim into one request; each
 * costs us one fallocate, so a request stays short.
 */
export const MAX_RANGES = 16;
/** Sectors in one discarded range, 1 GiB: freeing extents is quick, and requests of it are few. */
export const MAX_DISCARD_SECTORS = 2 ** 21;
/** Sectors in one zeroed range, 64 MiB: where a fallback has to write them, seconds, not minutes. */
export const MAX_ZERO_SECTORS = 2 ** 17;
