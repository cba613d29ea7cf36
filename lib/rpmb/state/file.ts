import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import type { FileTarget } from '../../store/file-store.ts';
import { isRemote } from '../../store/remote.ts';
import type { StoreInfo } from '../../store/store.ts';
import { BlockingStore, SyncFileStore } from '../../store/sync-store.ts';
import { codeOf, RpmbError, systemError, systemWord } from '../errors.ts';
import type { RpmbSystem } from '../system.ts';
import { PAGE } from './layout.ts';

/** A state file, open and locked, not looked into yet. */
export interface OpenFile {
  readonly path: string;
  readonly fd: number;
  readonly info: StoreInfo;
  /** Every byte has its place on the disk. */
  readonly allocated: boolean;
}

export function storeInfo(path: string, capacity: number, readOnly: boolean): StoreInfo {
  return {
    name: path,
    capacity,
    readOnly,
    blockSize: 1,
    physicalBlockSize: PAGE,
    memoryAlignment: 1,
    discard: false,
  };
}

/** Open and lock a state file. Throws an RpmbError. */
export function openFile(
  path: string,
  readOnly: boolean,
  system: Pick<RpmbSystem, 'lockFile'>,
): OpenFile {
  const fd = openPath(path, readOnly);
  try {
    const stats = fstatSync(fd);
    if (!stats.isFile()) {
      throw new RpmbError('KIND', path, 'is not a regular file', 'give an RPMB state file');
    }
    // The key is in it.
    if ((stats.mode & 0o077) !== 0) {
      const mode = (stats.mode & 0o777).toString(8).padStart(4, '0');
      const why = `others than its owner have access: ${mode}`;
      throw new RpmbError('MODE', path, why, 'chmod 600 it; was its key read by somebody?');
    }
    lock(path, fd, readOnly, system);
    const info = storeInfo(path, stats.size, readOnly);
    return { path, fd, info, allocated: stats.blocks * 512 >= stats.size };
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

export function blockingStore(file: OpenFile): BlockingStore {
  return new BlockingStore((sink) => new SyncFileStore(file.fd, file.info, sink));
}

/**
 * What an engine's `FileStore` needs. On a local file system it is meant for a thread that serves this
 * device alone: a commit is a write, a sync and a write, one behind the other, and handing each to
 * another thread would take as long as the disk.
 */
export function fileTarget(file: OpenFile): FileTarget {
  const remote = isRemote(file.path);
  return {
    fd: file.fd,
    info: file.info,
    direct: false,
    mayBlock: remote,
    syncsInPlace: !remote,
    allocationUnit: 1,
    syncFailure: new Int32Array(new SharedArrayBuffer(4)),
    copies: undefined,
  };
}

function openPath(path: string, readOnly: boolean): number {
  // O_NONBLOCK: a pipe of that name must not make us wait for its writer.
  const flags = constants.O_NONBLOCK | constants.O_NOCTTY;
  try {
    return openSync(path, flags | (readOnly ? constants.O_RDONLY : constants.O_RDWR));
  } catch (error) {
    switch (codeOf(error)) {
      case 'ENOENT': {
        const remedy = 'check the path, or make it: vduse rpmb create STATE --size 1M';
        throw new RpmbError('MISSING', path, 'no such file', remedy, error);
      }
      case 'EISDIR':
        throw new RpmbError('KIND', path, 'is a directory', 'give an RPMB state file', error);
      case 'EACCES':
      case 'EPERM':
      case 'EROFS': {
        const remedy = readOnly ? 'read' : 'read and write';
        const why = `cannot be opened: ${systemWord(error)}`;
        throw new RpmbError('PERMISSION', path, why, `this user must ${remedy} it`, error);
      }
      default:
        throw systemError(path, 'cannot be opened', error);
    }
  }
}

function lock(
  path: string,
  fd: number,
  readOnly: boolean,
  system: Pick<RpmbSystem, 'lockFile'>,
): void {
  let locked: boolean;
  try {
    locked = system.lockFile(fd, !readOnly);
  } catch (error) {
    throw systemError(path, 'cannot be locked', error);
  }
  if (locked) return;
  const remedy = 'stop that first, or reach it through its socket: unix:PATH';
  throw new RpmbError('IN_USE', path, 'another process serves or uses it', remedy);
}
