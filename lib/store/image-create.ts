import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  lstatSync,
  openSync,
  unlinkSync,
} from 'node:fs';
import { creationError, ImageError, systemWord } from './image-error.ts';

/** Make a sparse file of `size` bytes; returns its inode. */
export function createSparse(path: string, size: number, blockSize: number): bigint {
  checkNewSize(path, size, blockSize);
  let fd: number;
  try {
    // 0600: a disk's content is its owner's alone. O_EXCL: what appears meanwhile is not ours to fill.
    fd = openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL, 0o600);
  } catch (error) {
    throw creationError(path, error);
  }
  const { ino } = fstatSync(fd, { bigint: true });
  try {
    ftruncateSync(fd, size);
  } catch (error) {
    removeCreated(path, ino);
    const why = `its file system refuses ${size} bytes: ${systemWord(error)}`;
    throw new ImageError('SIZE', path, why, 'choose a smaller --size', error);
  } finally {
    closeSync(fd);
  }
  return ino;
}

/** Only what we made: the name may have been given to another file since. */
export function removeCreated(path: string, ino: bigint): void {
  try {
    if (lstatSync(path, { bigint: true }).ino === ino) unlinkSync(path);
  } catch {
    // The error that brought us here says more than this one.
  }
}

/** A new image has whole blocks; only one that exists is rounded down. */
function checkNewSize(path: string, size: number, blockSize: number): void {
  if (!Number.isSafeInteger(size) || size <= 0) {
    const remedy = `give 1 to ${Number.MAX_SAFE_INTEGER} bytes`;
    throw new ImageError('SIZE', path, `${size} is not the size of a disk`, remedy);
  }
  if (size % blockSize !== 0) {
    const nearest = Math.ceil(size / blockSize) * blockSize;
    const why = `${size} bytes are no multiple of the block size ${blockSize}`;
    throw new ImageError('SIZE', path, why, `give --size ${nearest}`);
  }
}
