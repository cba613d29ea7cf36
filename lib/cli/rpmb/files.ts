import { closeSync, openSync, readFileSync, writeSync } from 'node:fs';
import { RpmbError } from '../../rpmb/index.ts';

/** The whole of a file, or of standard input (`-`). */
export function readWhole(file: string): Uint8Array {
  return named(file, 'cannot be read', () => readFileSync(file === '-' ? 0 : file));
}

/** Make a file that only its owner can read, or take standard output (`-`), and use it. */
export async function withOutput<T>(file: string, use: (fd: number) => Promise<T>): Promise<T> {
  if (file === '-') return use(1);
  const fd = named(file, 'cannot be written', () => openSync(file, 'w', 0o600));
  try {
    return await use(fd);
  } finally {
    closeSync(fd);
  }
}

export async function writeWhole(file: string, data: Uint8Array): Promise<void> {
  await withOutput(file, async (fd) => writeAll(fd, file, data));
}

/** Write all of `data`; `file` is the name in a message. */
export function writeAll(fd: number, file: string, data: Uint8Array): void {
  named(file, 'cannot be written', () => {
    for (let done = 0; done < data.length; ) done += writeSync(fd, data, done);
  });
}

function named<T>(file: string, why: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const remedy = 'check the path and its permissions';
    throw new RpmbError('FILE', file, `${why}: ${code ?? message}`, remedy, error);
  }
}
