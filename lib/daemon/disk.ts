import { realpathSync, statSync } from 'node:fs';
import { basename } from 'node:path';
import { type BlockOptions, blockConfig, blockFeatures } from '../block/index.ts';
import { type Image, openImage } from '../store/index.ts';
import type { BlockModelOptions } from './block-model.ts';
import { UsageError } from './errors.ts';

/** What a disk may be told to be; every field but `image` has a default. */
export interface DiskOptions {
  /** A regular file or block device. */
  readonly image: string;
  /** Bytes: create the image, sparse, if it is missing; an existing one must have that size. */
  readonly size?: number;
  readonly queues?: number;
  /** Descriptors a queue, a power of two from 4 to 1024; default 256. */
  readonly queueSize?: number;
  readonly readOnly?: boolean;
  readonly blockSize?: number;
  /** At most 20 bytes; default: the image's base name, cut. */
  readonly serial?: string;
  /** O_DIRECT: past the page cache. */
  readonly direct?: boolean;
}

export const MAX_QUEUES = 256;
export const MAX_QUEUE_SIZE = 1024;
const MIN_QUEUE_SIZE = 4;
const SERIAL_BYTES = 20;

/** Throws a UsageError that names the option and its limits. */
export function checkDiskOptions(options: DiskOptions): void {
  const { queues = 1, queueSize = 256, blockSize = 512, serial = '' } = options;
  if (!Number.isInteger(queues) || queues < 1 || queues > MAX_QUEUES) {
    throw new UsageError(`--queues ${queues}: out of range (give 1 to ${MAX_QUEUES})`);
  }
  const powerOfTwo = Number.isInteger(Math.log2(queueSize));
  if (!powerOfTwo || queueSize < MIN_QUEUE_SIZE || queueSize > MAX_QUEUE_SIZE) {
    throw new UsageError(
      `--queue-size ${queueSize}: not possible (give a power of two from ${MIN_QUEUE_SIZE} to ${MAX_QUEUE_SIZE})`,
    );
  }
  if (blockSize !== 512 && blockSize !== 4096) {
    throw new UsageError(`--block-size ${blockSize}: not possible (give 512 or 4096)`);
  }
  if (Buffer.byteLength(serial) > SERIAL_BYTES || serial.includes('\0')) {
    throw new UsageError(`--serial ${serial}: too long (give at most ${SERIAL_BYTES} bytes)`);
  }
}

/** An open image and what a virtio block device over it looks like. */
export interface Disk {
  readonly image: Image;
  /** The image's real path. */
  readonly path: string;
  /** "device:inode" of the image. */
  readonly inode: string;
  readonly block: BlockOptions;
  readonly features: bigint;
  readonly config: Uint8Array;
  readonly model: BlockModelOptions;
}

/** Open the image (checked options) and describe the disk. The caller closes `image`. */
export function openDisk(options: DiskOptions): Disk {
  const blockSize = (options.blockSize ?? 512) as 512 | 4096;
  const image = openImage(options.image, {
    readOnly: options.readOnly ?? false,
    direct: options.direct ?? false,
    blockSize,
    ...(options.size === undefined ? {} : { size: options.size }),
  });
  try {
    const { info } = image;
    const block: BlockOptions = {
      capacity: info.capacity,
      blockSize,
      physicalBlockSize: Math.max(blockSize, info.physicalBlockSize),
      readOnly: info.readOnly,
      queues: options.queues ?? 1,
      queueSize: options.queueSize ?? 256,
      serial: options.serial ?? cutSerial(basename(options.image)),
      discard: info.discard,
    };
    const { dev, ino } = statSync(options.image, { bigint: true });
    return {
      image,
      path: realpathSync(options.image),
      inode: `${dev}:${ino}`,
      block,
      features: blockFeatures(block),
      config: blockConfig(block),
      model: { block, target: image.target },
    };
  } catch (error) {
    image.close();
    throw error;
  }
}

/** At most 20 bytes, not cut inside a character. */
function cutSerial(text: string): string {
  let serial = text;
  while (Buffer.byteLength(serial) > SERIAL_BYTES) serial = serial.slice(0, -1);
  return serial;
}
