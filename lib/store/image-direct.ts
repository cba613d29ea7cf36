import { readSync } from 'node:fs';
import { type BlockDeviceInfo, native } from '../native/index.ts';
import { directError, ImageError, systemWord } from './image-error.ts';

/** Every medium takes blocks of a page that lie in pages of memory. */
const PAGE = 4096;

export interface Alignment {
  /** Of offsets and lengths. */
  readonly blockSize: number;
  /** Of memory. */
  readonly memoryAlignment: number;
}

/**
 * What O_DIRECT asks for: from statx where kernel and file system say it (Linux 6.1), else the block
 * device's logical block, else a page. Throws where a disk of `blockSize` cannot keep to it.
 */
export function directAlignment(
  path: string,
  fd: number,
  blockSize: number,
  block: BlockDeviceInfo | undefined,
): Alignment {
  const fallback = block?.logicalBlockSize ?? PAGE;
  const [memory, offset] = native.directIoAlignment(fd) ?? [fallback, fallback];
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
  checkRead(path, fd, offset, memory);
  return { blockSize: offset, memoryAlignment: memory };
}

/** Some file systems accept the flag at open and refuse each read. */
function checkRead(path: string, fd: number, blockSize: number, memoryAlignment: number): void {
  const memory = native.allocate(Math.max(blockSize, memoryAlignment));
  try {
    readSync(fd, new Uint8Array(memory.buffer), 0, blockSize, 0);
  } catch (error) {
    throw directError(path, `a direct read fails: ${systemWord(error)}`, error);
  } finally {
    memory.unmap();
  }
}
