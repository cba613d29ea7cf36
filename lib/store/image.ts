import { type BigIntStats, closeSync, constants, fstatSync, openSync, statSync } from 'node:fs';
import { type BlockDeviceInfo, native, type OwnedFd } from '../native/index.ts';
import type { FileTarget } from './file-store.ts';
import { createSparse, removeCreated } from './image-create.ts';
import { directAlignment } from './image-direct.ts';
import {
  codeOf,
  directError,
  ImageError,
  inUse,
  kindError,
  openError,
  readOnlyError,
  systemError,
} from './image-error.ts';
import { type ImageMap, mapImage } from './image-map.ts';
import { isRemote } from './remote.ts';
import type { StoreInfo } from './store.ts';

export interface ImageOptions {
  readonly readOnly: boolean;
  /** O_DIRECT: past the page cache. */
  readonly direct: boolean;
  /** The disk's logical block: what its requests are multiples of. */
  readonly blockSize: 512 | 4096;
  /** Create the image, sparse, with so many bytes if it is missing; it must have that size if not. */
  readonly size?: number;
  /** Copy what is cached from and to a mapping of the file, where its file system is known to be fit. */
  readonly mmap: boolean;
}

/** A file system may like to transfer megabytes (st_blksize); a disk's physical block is at most this. */
const LARGEST_FILE_BLOCK = 4096;

/** An image, open and locked. Reactors share its descriptor; only who opened it closes it. */
export class Image {
  readonly fd: OwnedFd;
  readonly kind: 'file' | 'block';
  /** The inode that `openImage` made; undefined when the image was there before. */
  readonly #createdInode: bigint | undefined;
  /** What the user should be told, each in the form `what: why (what to do)`. */
  readonly warnings: readonly string[];
  /** What a `FileStore` needs; `postMessage` carries it. */
  readonly target: FileTarget;
  readonly #map: ImageMap | undefined;

  constructor(
    fd: OwnedFd,
    target: FileTarget,
    map: ImageMap | undefined,
    kind: 'file' | 'block',
    createdInode: bigint | undefined,
    warnings: readonly string[],
  ) {
    this.fd = fd;
    this.target = target;
    this.#map = map;
    this.kind = kind;
    this.#createdInode = createdInode;
    this.warnings = warnings;
  }

  /** `openImage` made it. */
  get created(): boolean {
    return this.#createdInode !== undefined;
  }

  get info(): StoreInfo {
    return this.target.info;
  }

  get direct(): boolean {
    return this.target.direct;
  }

  /** Close and unlock. No store may use the descriptor any more. */
  close(): void {
    this.#map?.map.unmap();
    this.fd.close();
  }

  /** Close, and remove an image that `openImage` made: it came to nothing. */
  discard(): void {
    this.close();
    if (this.#createdInode !== undefined) removeCreated(this.info.name, this.#createdInode);
  }
}

/**
 * Open and lock a regular file or block device to be served. Throws an `ImageError`; an image that
 * was created on the way is removed again then.
 */
export function openImage(path: string, options: ImageOptions): Image {
  const created = createIfMissing(path, options);
  let fd: OwnedFd | undefined;
  try {
    fd = openFile(path, options);
    checkKind(path, fstatSync(fd.fd, { bigint: true }));
    // A non-blocking file would make io_uring fail with EAGAIN what has to wait.
    native.setNonblocking(fd.fd, false);
    lock(path, fd, options.readOnly);
    return describe(path, fd, options, created);
  } catch (error) {
    fd?.close();
    if (created !== undefined) removeCreated(path, created);
    throw error;
  }
}

/** The inode made, undefined when there was something already. */
function createIfMissing(path: string, options: ImageOptions): bigint | undefined {
  const existing = statImage(path);
  if (existing !== undefined) {
    checkKind(path, existing);
    return undefined;
  }
  if (options.size === undefined) {
    const remedy = 'check the path, or create it with --size 1G';
    throw new ImageError('MISSING', path, 'no such file', remedy);
  }
  if (options.readOnly) {
    const why = 'no such file, and a new one holds nothing to read';
    throw new ImageError('MISSING', path, why, 'drop --read-only to create it');
  }
  return createSparse(path, options.size, options.blockSize);
}

function statImage(path: string): BigIntStats | undefined {
  try {
    return statSync(path, { bigint: true });
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return undefined;
    throw openError(path, error, false);
  }
}

function checkKind(path: string, stats: BigIntStats): void {
  if (stats.isFile() || stats.isBlockDevice()) return;
  if (stats.isDirectory()) throw kindError(path, 'a directory');
  if (stats.isFIFO()) throw kindError(path, 'a named pipe');
  if (stats.isSocket()) throw kindError(path, 'a socket');
  throw kindError(path, 'a character device');
}

function openFile(path: string, options: ImageOptions): OwnedFd {
  // O_NONBLOCK: should a pipe have taken the name meanwhile, opening it must not wait for a writer.
  let flags = constants.O_NONBLOCK | constants.O_NOCTTY;
  flags |= options.readOnly ? constants.O_RDONLY : constants.O_RDWR;
  if (options.direct) flags |= constants.O_DIRECT;
  // On a block device O_EXCL (without O_CREAT) refuses one that is mounted or claimed: open(2).
  if (!options.readOnly && statImage(path)?.isBlockDevice()) flags |= constants.O_EXCL;
  try {
    return native.adopt(openWithoutAtime(path, flags));
  } catch (error) {
    if (options.direct && codeOf(error) === 'EINVAL') {
      throw directError(path, 'its file system has no direct I/O', error);
    }
    throw openError(path, error, !options.readOnly && isReadable(path));
  }
}

/**
 * Whether the time of the last access must be noted is looked at with each read: 2 % of one from the page
 * cache. Only a file's owner may do without (open(2), O_NOATIME).
 */
function openWithoutAtime(path: string, flags: number): number {
  try {
    return openSync(path, flags | constants.O_NOATIME);
  } catch (error) {
    if (codeOf(error) !== 'EPERM') throw error;
    return openSync(path, flags);
  }
}

function isReadable(path: string): boolean {
  try {
    closeSync(openSync(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY));
    return true;
  } catch {
    return false;
  }
}

function lock(path: string, fd: OwnedFd, readOnly: boolean): void {
  let locked: boolean;
  try {
    locked = native.lockFile(fd.fd, !readOnly);
  } catch (error) {
    throw systemError(path, 'cannot be locked', error);
  }
  if (!locked) throw inUse(path, 'another process serves or uses it');
}

function describe(
  path: string,
  fd: OwnedFd,
  options: ImageOptions,
  created: bigint | undefined,
): Image {
  const stats = fstatSync(fd.fd, { bigint: true });
  const block = stats.isBlockDevice() ? native.blockDeviceInfo(fd.fd) : undefined;
  if (block?.readOnly && !options.readOnly) throw readOnlyError(path, 'the device is read-only');
  const size = block === undefined ? stats.size : BigInt(block.size);
  const { capacity, warnings } = wholeBlocks(path, size, options);
  const alignment = options.direct
    ? directAlignment(path, fd.fd, options.blockSize, block)
    : { blockSize: 1, memoryAlignment: 1 };
  const mayBlock = options.direct || block !== undefined || isRemote(path);
  const map =
    options.mmap && !mayBlock ? mapImage(path, fd.fd, capacity, options.readOnly) : undefined;
  const target: FileTarget = {
    fd: fd.fd,
    info: {
      name: path,
      capacity,
      readOnly: options.readOnly,
      ...alignment,
      physicalBlockSize: physicalBlockSize(stats, block, options.blockSize),
      discard: !options.readOnly,
    },
    direct: options.direct,
    mayBlock,
    syncsInPlace: false,
    allocationUnit: block?.logicalBlockSize ?? 1,
    syncFailure: new Int32Array(new SharedArrayBuffer(4)),
    copies: map?.copies,
  };
  return new Image(fd, target, map, block === undefined ? 'file' : 'block', created, warnings);
}

/** The capacity: rounded down to whole blocks, with a word about the rest. */
function wholeBlocks(
  path: string,
  size: bigint,
  options: ImageOptions,
): { capacity: number; warnings: string[] } {
  const { blockSize } = options;
  if (options.size !== undefined && size !== BigInt(options.size)) {
    const why = `has ${size} bytes, not the ${options.size} asked for`;
    throw new ImageError('SIZE', path, why, 'drop --size; an image is never resized');
  }
  if (size === 0n) {
    throw new ImageError('EMPTY', path, 'is empty', 'remove it and create it with --size 1G');
  }
  if (size > BigInt(Number.MAX_SAFE_INTEGER)) {
    const remedy = `serve at most ${Number.MAX_SAFE_INTEGER}`;
    throw new ImageError('SIZE', path, `has ${size} bytes`, remedy);
  }
  const bytes = Number(size);
  const rest = bytes % blockSize;
  if (rest === bytes) {
    const why = `has ${bytes} bytes, less than one block of ${blockSize}`;
    throw new ImageError('SIZE', path, why, `make it a multiple of ${blockSize}`);
  }
  const warning = `${path}: its last ${rest} bytes are not served (to use them make its size a multiple of the block size ${blockSize})`;
  return { capacity: bytes - rest, warnings: rest === 0 ? [] : [warning] };
}

function physicalBlockSize(
  stats: BigIntStats,
  block: BlockDeviceInfo | undefined,
  blockSize: number,
): number {
  const likes = block?.physicalBlockSize ?? Math.min(Number(stats.blksize), LARGEST_FILE_BLOCK);
  return Math.max(2 ** Math.floor(Math.log2(likes)), blockSize);
}
