import { fdatasync, realpathSync, statSync } from 'node:fs';
import { basename } from 'node:path';
import { promisify } from 'node:util';
import { type BlockOptions, blockConfig, blockFeatures, CONFIG_WRITEBACK } from '../block/index.ts';
import { type Image, openImage } from '../store/index.ts';
import { BLOCK_MODEL, type BlockMessage, type BlockModelOptions } from './block-model.ts';
import { UsageError } from './errors.ts';
import type { HostedDevice } from './hosted-device.ts';

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
  /** What is cached may be copied from and to a mapping of the image; default: true. */
  readonly mmap?: boolean;
}

export const MAX_QUEUES = 256;
export const MAX_QUEUE_SIZE = 1024;
const MIN_QUEUE_SIZE = 4;
const SERIAL_BYTES = 20;
const VIRTIO_ID_BLOCK = 2;

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

/**
 * Open the image (checked options) as a virtio block device. With `switchableCache` a driver may
 * turn the write cache off (CONFIG_WCE: not over VDUSE, which refuses it).
 */
export function openDisk(options: DiskOptions, switchableCache: boolean): HostedDevice {
  const blockSize = (options.blockSize ?? 512) as 512 | 4096;
  const image = openImage(options.image, {
    readOnly: options.readOnly ?? false,
    direct: options.direct ?? false,
    blockSize,
    mmap: options.mmap ?? true,
    ...(options.size === undefined ? {} : { size: options.size }),
  });
  try {
    const { info } = image;
    return new Disk(options.image, image, {
      capacity: info.capacity,
      blockSize,
      physicalBlockSize: Math.max(blockSize, info.physicalBlockSize),
      readOnly: info.readOnly,
      queues: options.queues ?? 1,
      queueSize: options.queueSize ?? 256,
      serial: options.serial ?? cutSerial(basename(options.image)),
      discard: info.discard,
      switchableCache,
    });
  } catch (error) {
    image.discard();
    throw error;
  }
}

/** An open image as a virtio block device. */
class Disk implements HostedDevice {
  readonly type = 'block';
  readonly virtioId = VIRTIO_ID_BLOCK;
  readonly path: string;
  readonly inode: string;
  readonly features: bigint;
  readonly model = BLOCK_MODEL;
  readonly ownThread = false;
  readonly #image: Image;
  readonly #block: BlockOptions;
  readonly #config: Uint8Array;

  constructor(path: string, image: Image, block: BlockOptions) {
    const { dev, ino } = statSync(path, { bigint: true });
    this.path = realpathSync(path);
    this.inode = `${dev}:${ino}`;
    this.features = blockFeatures(block);
    this.#image = image;
    this.#block = block;
    this.#config = blockConfig(block);
  }

  get capacity() {
    return this.#block.capacity;
  }

  get readOnly() {
    return this.#block.readOnly;
  }

  get queues() {
    return this.#block.queues;
  }

  get queueSize() {
    return this.#block.queueSize;
  }

  get modelOptions(): BlockModelOptions {
    return { block: this.#block, target: this.#image.target };
  }

  get facts() {
    const { blockSize, readOnly } = this.#block;
    return { blockSize, readOnly, direct: this.#image.direct };
  }

  get identity() {
    const { serial, blockSize, readOnly } = this.#block;
    return { serial, blockSize, access: readOnly ? 'read-only' : 'read-write' };
  }

  get warnings() {
    return this.#image.warnings;
  }

  config(): Uint8Array {
    return this.#config;
  }

  writeConfig(offset: number, bytes: Uint8Array): BlockMessage {
    const [value = 0] = bytes;
    const isCache = this.#block.switchableCache && offset === CONFIG_WRITEBACK;
    if (!isCache || bytes.length !== 1 || value > 1) {
      throw new RangeError(
        `${bytes.length} bytes at ${offset} of the configuration space: only writeback can be written`,
      );
    }
    this.#config[CONFIG_WRITEBACK] = value;
    return { writeThrough: value === 0 };
  }

  reset(): BlockMessage | undefined {
    if (!this.#block.switchableCache) return undefined;
    this.#config[CONFIG_WRITEBACK] = 1;
    return { writeThrough: false };
  }

  async flush(): Promise<void> {
    if (!this.#block.readOnly) await promisify(fdatasync)(this.#image.fd.fd);
  }

  close(): void {
    this.#image.close();
  }

  discard(): void {
    this.#image.discard();
  }
}

/** At most 20 bytes, not cut inside a character. */
function cutSerial(text: string): string {
  let serial = text;
  while (Buffer.byteLength(serial) > SERIAL_BYTES) serial = serial.slice(0, -1);
  return serial;
}
