import {
  type BigIntStats,
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  lstatSync,
  openSync,
  readSync,
  statfsSync,
  statSync,
  unlinkSync,
} from 'node:fs';
import { type BlockDeviceInfo, native, type OwnedFd } from '../native/index.ts';
import type { FileTarget } from './file-store.ts';
import { ImageError } from './image-error.ts';
import type { StoreInfo } from './store.ts';

export interface ImageOptions {
  readonly readOnly: boolean;
  /** O_DIRECT: past the page cache. */
  readonly direct: boolean;
  /** The disk's logical block: what its requests are multiples of. */
  readonly blockSize: 512 | 4096;
  /** Create the image, sparse, with so many bytes if it is missing; it must have that size if not. */
  readonly size?: number;
}

/** What a block device served as a disk tells its driver at best; a file system's guess is capped. */
const PAGE = 4096;

/** statfs(2) types whose page cache waits for a network or another process. */
const REMOTE_FILE_SYSTEMS = new Set([
  0x6969, // NFS
  0xff534d42, // CIFS
  0xfe534d42, // SMB2
  0x517b, // SMB
  0x65735546, // FUSE
  0x01021997, // 9p
  0x00c36400, // Ceph
  0x5346414f, // AFS
]);

/** An image, open and locked. Reactors share its descriptor; only the one that opened it closes it. */
export class Image {
  readonly fd: OwnedFd;
  readonly info: StoreInfo;
  readonly kind: 'file' | 'block';
  readonly direct: boolean;
  /** `openImage` made it. */
  readonly created: boolean;
  /** What the user should be told; each in the form `what: why (what to do)`. */
  readonly warnings: readonly string[];
  /** What a `FileStore` needs; `postMessage` carries it. */
  readonly target: FileTarget;

  constructor(
    fd: OwnedFd,
    target: FileTarget,
    kind: 'file' | 'block',
    created: boolean,
    warnings: readonly string[],
  ) {
    this.fd = fd;
    this.info = target.info;
    this.target = target;
    this.kind = kind;
    this.direct = target.direct;
    this.created = created;
    this.warnings = warnings;
  }

  /** Close and unlock. No store may use the descriptor any more. */
  close(): void {
    this.fd.close();
  }
}

/**
 * Open and lock a regular file or block device to be served. Throws an `ImageError`; an image
 * created on the way is removed again then.
 */
export function openImage(path: string, options: ImageOptions): Image {
  const created = createIfMissing(path, options);
  let fd: OwnedFd | undefined;
  try {
    fd = openLocked(path, options);
    return describe(path, fd, options, created !== undefined);
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
    throw new ImageError(
      'ERR_VDUSE_IMAGE_MISSING',
      path,
      'no such file',
      'check the path, or create it with --size 1G',
    );
  }
  if (options.readOnly) {
    throw new ImageError(
      'ERR_VDUSE_IMAGE_MISSING',
      path,
      'no such file, and a new one would hold nothing to read',
      'drop --read-only to create it',
    );
  }
  checkSize(path, options.size, options.blockSize);
  let fd: number;
  try {
    // 0600: a disk's content is its owner's alone. O_EXCL: what appears meanwhile is not ours to fill.
    fd = openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL, 0o600);
  } catch (error) {
    throw creationError(path, error);
  }
  const { ino } = fstatSync(fd, { bigint: true });
  try {
    ftruncateSync(fd, options.size);
  } catch (error) {
    removeCreated(path, ino);
    throw new ImageError(
      'ERR_VDUSE_IMAGE_SIZE',
      path,
      `the file system refuses a file of ${options.size} bytes: ${systemWord(error)}`,
      'choose a smaller --size or another file system',
      error,
    );
  } finally {
    closeSync(fd);
  }
  return ino;
}

/** A new image has whole blocks; only one that exists is rounded down. */
function checkSize(path: string, size: number, blockSize: number): void {
  if (!Number.isSafeInteger(size) || size <= 0) {
    throw new ImageError(
      'ERR_VDUSE_IMAGE_SIZE',
      path,
      `${size} is no size in bytes`,
      `give 1 … ${Number.MAX_SAFE_INTEGER}`,
    );
  }
  if (size % blockSize !== 0) {
    throw new ImageError(
      'ERR_VDUSE_IMAGE_SIZE',
      path,
      `${size} bytes are not a multiple of the block size ${blockSize}`,
      `give --size ${Math.max(1, Math.round(size / blockSize)) * blockSize}`,
    );
  }
}

/** Only what we made: the name may have been given to another file since. */
function removeCreated(path: string, ino: bigint): void {
  try {
    if (lstatSync(path, { bigint: true }).ino === ino) unlinkSync(path);
  } catch {
    // The error that brought us here says more than this one.
  }
}

function statImage(path: string): BigIntStats | undefined {
  try {
    return statSync(path, { bigint: true });
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return undefined;
    throw openError(path, error, true);
  }
}

function checkKind(path: string, stats: BigIntStats): void {
  if (stats.isFile() || stats.isBlockDevice()) return;
  const what = stats.isDirectory()
    ? 'a directory'
    : stats.isFIFO()
      ? 'a named pipe'
      : stats.isSocket()
        ? 'a socket'
        : 'a character device';
  throw new ImageError(
    'ERR_VDUSE_IMAGE_KIND',
    path,
    `is ${what}, not a disk image`,
    'give a regular file or a block device',
  );
}

function openLocked(path: string, options: ImageOptions): OwnedFd {
  const stats = statImage(path);
  if (stats === undefined) {
    throw new ImageError(
      'ERR_VDUSE_IMAGE_MISSING',
      path,
      'it was removed while being opened',
      'try again',
    );
  }
  // O_NONBLOCK: should a pipe have taken the name since, opening it must not wait for a writer.
  let flags = constants.O_NONBLOCK | constants.O_NOCTTY;
  flags |= options.readOnly ? constants.O_RDONLY : constants.O_RDWR;
  if (options.direct) flags |= constants.O_DIRECT;
  // On a block device O_EXCL without O_CREAT refuses one that is mounted or claimed (open(2)).
  if (stats.isBlockDevice() && !options.readOnly) flags |= constants.O_EXCL;
  let fd: OwnedFd;
  try {
    fd = native.adopt(openSync(path, flags));
  } catch (error) {
    throw openError(path, error, options.readOnly);
  }
  try {
    checkKind(path, fstatSync(fd.fd, { bigint: true }));
    // io_uring fails what would wait with EAGAIN on a non-blocking file.
    native.setNonblocking(fd.fd, false);
    lock(path, fd, options.readOnly);
  } catch (error) {
    fd.close();
    throw error;
  }
  return fd;
}

function lock(path: string, fd: OwnedFd, readOnly: boolean): void {
  let locked: boolean;
  try {
    locked = native.lockFile(fd.fd, !readOnly);
  } catch (error) {
    throw new ImageError(
      'ERR_VDUSE_IMAGE_SYSTEM',
      path,
      `cannot be locked: ${systemWord(error)}`,
      'use a file system with open file description locks',
      error,
    );
  }
  if (!locked) throw inUse(path, 'another process serves or uses it');
}

function inUse(path: string, why: string): ImageError {
  return new ImageError(
    'ERR_VDUSE_IMAGE_IN_USE',
    path,
    why,
    'stop that first; only read-only servers can share an image',
  );
}

function describe(path: string, fd: OwnedFd, options: ImageOptions, created: boolean): Image {
  const stats = fstatSync(fd.fd, { bigint: true });
  const block = stats.isBlockDevice() ? native.blockDeviceInfo(fd.fd) : undefined;
  if (block?.readOnly && !options.readOnly) throw readOnlyError(path, 'the device is read-only');
  const size = block === undefined ? stats.size : BigInt(block.size);
  const warnings: string[] = [];
  const capacity = servedBytes(path, size, options, warnings);
  const { blockSize, memoryAlignment } = options.direct
    ? directAlignment(path, fd, options.blockSize, block)
    : { blockSize: 1, memoryAlignment: 1 };
  if (options.direct) checkDirectRead(path, fd, blockSize, memoryAlignment);
  const target: FileTarget = {
    fd: fd.fd,
    info: {
      name: path,
      capacity,
      readOnly: options.readOnly,
      blockSize,
      physicalBlockSize: physicalBlockSize(options, stats, block),
      memoryAlignment,
      discard: !options.readOnly,
    },
    direct: options.direct,
    mayBlock:
      options.direct || block !== undefined || REMOTE_FILE_SYSTEMS.has(statfsSync(path).type),
    allocationUnit: block?.logicalBlockSize ?? 1,
    syncFailure: new Int32Array(new SharedArrayBuffer(4)),
  };
  return new Image(fd, target, block === undefined ? 'file' : 'block', created, warnings);
}

/** The capacity: whole blocks, with a word about the rest. */
function servedBytes(
  path: string,
  size: bigint,
  options: ImageOptions,
  warnings: string[],
): number {
  const { blockSize } = options;
  if (options.size !== undefined && size !== BigInt(options.size)) {
    throw new ImageError(
      'ERR_VDUSE_IMAGE_SIZE',
      path,
      `has ${size} bytes, not the ${options.size} asked for`,
      `drop --size to serve it as it is; an image is never resized`,
    );
  }
  if (size === 0n) {
    throw new ImageError(
      'ERR_VDUSE_IMAGE_EMPTY',
      path,
      'is empty',
      'remove it and create it with --size 1G',
    );
  }
  if (size > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw new ImageError(
      'ERR_VDUSE_IMAGE_SIZE',
      path,
      `has ${size} bytes`,
      `serve at most ${Number.MAX_SAFE_INTEGER}`,
    );
  }
  const bytes = Number(size);
  const rest = bytes % blockSize;
  if (rest === bytes) {
    throw new ImageError(
      'ERR_VDUSE_IMAGE_SIZE',
      path,
      `has ${bytes} bytes, less than one block of ${blockSize}`,
      `make it a multiple of ${blockSize}`,
    );
  }
  if (rest !== 0) {
    warnings.push(
      `${path}: its last ${rest} bytes are not served, the size is no multiple of the block size ${blockSize} (make it one to use them)`,
    );
  }
  return bytes - rest;
}

interface Alignment {
  readonly blockSize: number;
  readonly memoryAlignment: number;
}

/**
 * What O_DIRECT asks for: from statx where kernel and file system say it (Linux 6.1), the block
 * device's logical block, else a page, which every medium accepts.
 */
function directAlignment(
  path: string,
  fd: OwnedFd,
  blockSize: number,
  block: BlockDeviceInfo | undefined,
): Alignment {
  const told = native.directIoAlignment(fd.fd);
  if (told !== undefined && told[1] === 0)
    throw directError(path, 'its file system has no direct I/O for it');
  const fallback = block?.logicalBlockSize ?? PAGE;
  const [memory, offset] = told ?? [fallback, fallback];
  if (offset > PAGE) throw directError(path, `its medium writes blocks of ${offset} bytes`);
  if (offset > blockSize) {
    throw new ImageError(
      'ERR_VDUSE_IMAGE_BLOCK_SIZE',
      path,
      `direct I/O needs blocks of ${offset} bytes here, the disk's are ${blockSize}`,
      'add --block-size 4096, or drop --direct',
    );
  }
  return { blockSize: offset, memoryAlignment: memory };
}

/** Some file systems accept the flag at open and refuse each read. */
function checkDirectRead(
  path: string,
  fd: OwnedFd,
  blockSize: number,
  memoryAlignment: number,
): void {
  const memory = native.allocate(Math.max(blockSize, memoryAlignment));
  try {
    readSync(fd.fd, new Uint8Array(memory.buffer), 0, blockSize, 0);
  } catch (error) {
    throw directError(path, `a direct read fails: ${systemWord(error)}`, error);
  } finally {
    memory.unmap();
  }
}

function physicalBlockSize(
  options: ImageOptions,
  stats: BigIntStats,
  block: BlockDeviceInfo | undefined,
): number {
  // st_blksize may be what a network file system likes to transfer; a disk's block is at most a page.
  const likes = block?.physicalBlockSize ?? Math.min(Number(stats.blksize), PAGE);
  const power = 2 ** Math.floor(Math.log2(likes));
  return Math.max(power, options.blockSize);
}

function creationError(path: string, error: unknown): ImageError {
  switch (codeOf(error)) {
    case 'ENOENT':
    case 'ENOTDIR':
      return new ImageError(
        'ERR_VDUSE_IMAGE_MISSING',
        path,
        'the folder it should be created in does not exist',
        'create the folder first',
        error,
      );
    case 'EEXIST':
      return new ImageError(
        'ERR_VDUSE_IMAGE_MISSING',
        path,
        'is a symbolic link to nothing',
        'remove the link, or create what it points to',
        error,
      );
    case 'EACCES':
    case 'EPERM':
      return new ImageError(
        'ERR_VDUSE_IMAGE_PERMISSION',
        path,
        'no permission to create it',
        'choose a folder this user can write to',
        error,
      );
    case 'EROFS':
      return new ImageError(
        'ERR_VDUSE_IMAGE_READ_ONLY',
        path,
        'cannot be created, the file system is read-only',
        'choose another folder',
        error,
      );
    default:
      return new ImageError(
        'ERR_VDUSE_IMAGE_SYSTEM',
        path,
        `cannot be created: ${systemWord(error)}`,
        'see the errno',
        error,
      );
  }
}

function openError(path: string, error: unknown, readOnly: boolean): ImageError {
  switch (codeOf(error)) {
    case 'EACCES':
    case 'EPERM':
      if (!readOnly && isReadable(path))
        return readOnlyError(path, 'no permission to write to it', error);
      return new ImageError(
        'ERR_VDUSE_IMAGE_PERMISSION',
        path,
        'no permission to read it',
        'let this user read the file and enter its folders',
        error,
      );
    case 'EROFS':
      return readOnlyError(path, 'it is on read-only storage', error);
    case 'EBUSY':
      return inUse(path, 'the device is mounted or in use');
    case 'ETXTBSY':
      return inUse(path, 'it is running as a program or used for swap');
    case 'EINVAL':
      return directError(path, 'its file system has no direct I/O', error);
    case 'ENOTDIR':
      return new ImageError(
        'ERR_VDUSE_IMAGE_MISSING',
        path,
        'part of the path is no folder',
        'check the path',
        error,
      );
    case 'ENXIO':
    case 'ENODEV':
    case 'ENOMEDIUM':
      return new ImageError(
        'ERR_VDUSE_IMAGE_KIND',
        path,
        'there is no device behind it',
        'give a regular file or a block device',
        error,
      );
    default:
      return new ImageError(
        'ERR_VDUSE_IMAGE_SYSTEM',
        path,
        `cannot be opened: ${systemWord(error)}`,
        'see the errno',
        error,
      );
  }
}

function isReadable(path: string): boolean {
  try {
    closeSync(openSync(path, constants.O_RDONLY | constants.O_NONBLOCK));
    return true;
  } catch {
    return false;
  }
}

function readOnlyError(path: string, why: string, cause?: unknown): ImageError {
  return new ImageError(
    'ERR_VDUSE_IMAGE_READ_ONLY',
    path,
    why,
    'serve it with --read-only, or give this user write access',
    cause,
  );
}

function directError(path: string, why: string, cause?: unknown): ImageError {
  return new ImageError('ERR_VDUSE_IMAGE_DIRECT', path, why, 'serve it without --direct', cause);
}

function codeOf(error: unknown): string | undefined {
  return (error as NodeJS.ErrnoException).code;
}

/** `ENOSPC: no space left on device`, without Node's repetition of call and path. */
function systemWord(error: unknown): string {
  return (error as Error).message.replace(/, [a-z0-9_]+( '.*')?$/, '');
}
