import { fstatSync, readFileSync, readSync } from 'node:fs';
import { type BlockDeviceInfo, native } from '../native/index.ts';
import { directError, ImageError, systemWord } from './image-error.ts';

/** Every medium takes blocks of a page that lie in pages of memory. */
const PAGE = 4096;
const SECTOR = 512;

export interface Alignment {
  /** Of offsets and lengths. */
  readonly blockSize: number;
  /** Of memory. */
  readonly memoryAlignment: number;
}

/**
 * What O_DIRECT asks for: from statx where kernel and file system say it (Linux 6.1), else as well as
 * it can be found out. Throws where a disk of `blockSize` cannot keep to it.
 */
export function directAlignment(
  path: string,
  fd: number,
  blockSize: number,
  block: BlockDeviceInfo | undefined,
): Alignment {
  const [memory, offset] = native.directIoAlignment(fd) ?? guessAlignment(fd, block);
  if (offset === 0) throw directError(path, 'its file system has no direct I/O for it');
  if (offset > PAGE) throw directError(path, `its medium has blocks of ${offset} bytes`);
  if (offset > blockSize) {
    throw new ImageError(
      'BLOCK_SIZE',
      path,
      `direct I/O needs blocks of ${offset} bytes here, the disk's are ${blockSize}`,
      'add --block-size 4096, or drop --direct',
    );
  }
  const error = tryRead(fd, offset, memory);
  // Some file systems accept the flag at open and refuse each read.
  if (error !== undefined)
    throw directError(path, `direct reads fail: ${systemWord(error)}`, error);
  return { blockSize: offset, memoryAlignment: memory };
}

/** Of a medium that does not say: its logical block serves for memory too. */
function guessAlignment(fd: number, block: BlockDeviceInfo | undefined): [number, number] {
  const size = block?.logicalBlockSize ?? logicalBlockBelow(fd) ?? smallestRead(fd);
  return [size, size];
}

/** The block of the disk that a file system lies on, where it lies on one. */
function logicalBlockBelow(fd: number): number | undefined {
  const { dev } = fstatSync(fd);
  const major = (dev >>> 8) & 0xfff;
  const minor = (dev & 0xff) | ((dev >>> 12) & 0xfff00);
  const disk = `/sys/dev/block/${major}:${minor}`;
  // A partition has no queue, its disk has.
  for (const queue of [`${disk}/queue`, `${disk}/../queue`]) {
    try {
      return Number(readFileSync(`${queue}/logical_block_size`, 'utf8'));
    } catch {
      // The other place, or a file system without a disk.
    }
  }
  return undefined;
}

/** A file system without a disk has no holes that would let a misaligned read pass, so trying tells. */
function smallestRead(fd: number): number {
  return tryRead(fd, SECTOR, SECTOR) === undefined ? SECTOR : PAGE;
}

/** Read `length` bytes to memory no better aligned than `alignment`; returns the error. */
function tryRead(fd: number, length: number, alignment: number): unknown {
  const memory = native.allocate(length + alignment);
  try {
    readSync(fd, new Uint8Array(memory.buffer, alignment, length), 0, length, 0);
    return undefined;
  } catch (error) {
    return error;
  } finally {
    memory.unmap();
  }
}
