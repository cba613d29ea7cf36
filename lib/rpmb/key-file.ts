import { closeSync, constants, fstatSync, openSync, readSync, type Stats } from 'node:fs';
import { codeOf, RpmbError, systemWord } from './errors.ts';
import { KEY_BYTES } from './frame.ts';

export interface KeyFileOptions {
  /** Accept a file that its group or others may read. */
  readonly allowReadable?: boolean;
  /** What the option is called that makes it so, for the message. */
  readonly allowOption?: string;
}

/**
 * Read a key of 32 bytes from a file or an open descriptor. The caller wipes what it gets.
 * Symbolic links are followed: mounted secrets are reached through them, and what counts is the
 * file that was opened.
 */
export function readKeyFile(source: string | number, options: KeyFileOptions = {}): Uint8Array {
  if (typeof source === 'number') return readKey(source, `key descriptor ${source}`, options);
  const what = `key file ${source}`;
  const fd = openKey(source, what);
  try {
    return readKey(fd, what, options);
  } finally {
    closeSync(fd);
  }
}

/** Throws an RpmbError for a key that is not 32 bytes. */
export function checkKey(key: Uint8Array, what: string): void {
  if (key.length === KEY_BYTES) return;
  const remedy = `give ${KEY_BYTES} bytes`;
  throw new RpmbError('OPTIONS', what, `has ${key.length} bytes, not ${KEY_BYTES}`, remedy);
}

function openKey(path: string, what: string): number {
  // O_NONBLOCK: a pipe of that name must not make us wait for its writer.
  const flags = constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY;
  let fd: number;
  try {
    fd = openSync(path, flags);
  } catch (error) {
    const remedy =
      codeOf(error) === 'ENOENT'
        ? 'check the path, or make one: (umask 077; head -c 32 /dev/urandom > FILE)'
        : 'check the path and its permissions';
    const why = codeOf(error) === 'ENOENT' ? 'no such file' : systemWord(error);
    throw new RpmbError('KEY_FILE', what, why, remedy, error);
  }
  if (fstatSync(fd).isFile()) return fd;
  closeSync(fd);
  throw new RpmbError('KEY_FILE', what, 'is not a regular file', 'pass a pipe by --key-fd');
}

function readKey(fd: number, what: string, options: KeyFileOptions): Uint8Array {
  const stats = statKey(fd, what);
  if (stats.isFile() && (stats.mode & 0o077) !== 0 && options.allowReadable !== true) {
    const mode = (stats.mode & 0o777).toString(8).padStart(4, '0');
    const option = options.allowOption ?? '--allow-readable-key';
    const remedy = `chmod 600 it, or give ${option} if that is meant`;
    throw new RpmbError('KEY_FILE', what, `others than its owner have access: ${mode}`, remedy);
  }
  // One byte more than a key, so that a longer file shows.
  const bytes = new Uint8Array(KEY_BYTES + 1);
  const length = readAll(fd, bytes, what);
  if (length === KEY_BYTES) {
    const key = bytes.slice(0, KEY_BYTES);
    bytes.fill(0);
    return key;
  }
  bytes.fill(0);
  const found = length > KEY_BYTES ? (stats.isFile() ? stats.size : 'more') : length;
  const remedy = 'a key is its 32 bytes and nothing else: no text, no line end';
  throw new RpmbError('KEY_FILE', what, `has ${found} bytes, not ${KEY_BYTES}`, remedy);
}

function statKey(fd: number, what: string): Stats {
  try {
    return fstatSync(fd);
  } catch (error) {
    const remedy = 'give the number of an open descriptor';
    throw new RpmbError('KEY_FILE', what, systemWord(error), remedy, error);
  }
}

function readAll(fd: number, into: Uint8Array, what: string): number {
  let done = 0;
  try {
    while (done < into.length) {
      const bytes = readSync(fd, into, done, into.length - done, null);
      if (bytes === 0) break;
      done += bytes;
    }
  } catch (error) {
    into.fill(0);
    const remedy = 'check that it is open for reading';
    throw new RpmbError('KEY_FILE', what, `cannot be read: ${systemWord(error)}`, remedy, error);
  }
  return done;
}
