import {
  closeSync,
  constants,
  fchmodSync,
  fstatSync,
  fsyncSync,
  lstatSync,
  openSync,
  readSync,
  unlinkSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { BlockingStore, SyncFileStore } from '../../store/sync-store.ts';
import { CAPACITY_UNIT, DEFAULT_MAX_BLOCKS, MAX_CAPACITY_UNITS } from '../config.ts';
import { codeOf, RpmbError, systemError, systemWord } from '../errors.ts';
import { MAX_COUNTER } from '../frame.ts';
import { checkKey } from '../key-file.ts';
import type { RpmbSystem } from '../system.ts';
import { storeInfo } from './file.ts';
import {
  dataOffset,
  encodeHeader,
  encodeSlot,
  fileBytes,
  ID_BYTES,
  SLOT_HEADER_BYTES,
  SLOTS,
  type StateLayout,
  slotBytesFor,
  slotOffset,
} from './layout.ts';
import { syncWhole, writeWhole } from './recover.ts';
import { makeWrapCheck, wrapKey } from './wrap.ts';

export interface CreateOptions {
  /** Bytes, a multiple of 128 KiB up to 16 MiB; unless given, as many as `from` needs. */
  readonly size?: number;
  /** A file whose bytes the data area begins with. */
  readonly from?: string;
  /** Program this key at once; the caller wipes it. */
  readonly key?: Uint8Array;
  /** Store the key wrapped under this one; the caller wipes it. */
  readonly wrapKey?: Uint8Array;
  /** The write counter to begin with (0). */
  readonly initialCounter?: number;
  /** Blocks in one request, 1 … 255; 0 says "no limit" to the driver. */
  readonly maxWriteBlocks?: number;
  readonly maxReadBlocks?: number;
}

const CHUNK = 1 << 20;

/**
 * Make a state file, mode 0600, every byte of it written: a commit then allocates nothing, so it
 * can't fail for lack of space, and its sync has no metadata to write. The header comes last: until
 * it is there the file is not a state. Throws an RpmbError; what was made on the way is removed.
 */
export function createState(path: string, options: CreateOptions, system: RpmbSystem): void {
  const source = options.from === undefined ? undefined : openSource(options.from);
  try {
    const layout = layoutOf(path, options, source?.size, system);
    const fd = openNew(path);
    try {
      fill(path, fd, layout, options, source, system);
      syncFolder(path);
    } catch (error) {
      removeNew(path, fd);
      throw error;
    } finally {
      closeSync(fd);
    }
  } finally {
    if (source !== undefined) closeSync(source.fd);
  }
}

interface Source {
  readonly path: string;
  readonly fd: number;
  readonly size: number;
}

function openSource(path: string): Source {
  const flags = constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY;
  try {
    const fd = openSync(path, flags);
    const stats = fstatSync(fd);
    if (stats.isFile()) return { path, fd, size: stats.size };
    closeSync(fd);
  } catch (error) {
    const remedy = 'check the path and its permissions';
    throw new RpmbError('OPTIONS', `--from ${path}`, systemWord(error), remedy, error);
  }
  throw new RpmbError('OPTIONS', `--from ${path}`, 'is not a regular file', 'give a raw image');
}

function layoutOf(
  path: string,
  options: CreateOptions,
  sourceSize: number | undefined,
  system: RpmbSystem,
): StateLayout {
  const { maxWriteBlocks = DEFAULT_MAX_BLOCKS, maxReadBlocks = DEFAULT_MAX_BLOCKS } = options;
  if (options.key !== undefined) checkKey(options.key, 'the key');
  if (options.wrapKey !== undefined) checkKey(options.wrapKey, 'the wrap key');
  checkRange('--max-write-blocks', maxWriteBlocks, 0xff);
  checkRange('--max-read-blocks', maxReadBlocks, 0xff);
  checkRange('--initial-counter', options.initialCounter ?? 0, MAX_COUNTER);
  const size = options.size ?? roundUp(sourceSize ?? 0);
  const capacityUnits = size / CAPACITY_UNIT;
  if (!Number.isInteger(capacityUnits) || capacityUnits < 1 || capacityUnits > MAX_CAPACITY_UNITS) {
    const remedy = 'give --size, a multiple of 128K from 128K to 16M';
    throw new RpmbError('OPTIONS', path, `an RPMB of ${size} bytes is not possible`, remedy);
  }
  if (sourceSize !== undefined && sourceSize > size) {
    const why = `${sourceSize} bytes of --from don't fit into ${size}`;
    throw new RpmbError('OPTIONS', path, why, 'give a larger --size');
  }
  const id = new Uint8Array(ID_BYTES);
  system.getRandom(id);
  const limits = { capacityUnits, maxWriteBlocks, maxReadBlocks };
  return {
    ...limits,
    id,
    slotBytes: slotBytesFor(limits),
    wrapCheck:
      options.wrapKey === undefined
        ? undefined
        : makeWrapCheck(options.wrapKey, id, (into) => system.getRandom(into)),
  };
}

function roundUp(size: number): number {
  return Math.ceil(size / CAPACITY_UNIT) * CAPACITY_UNIT;
}

function checkRange(option: string, value: number, most: number): void {
  if (Number.isInteger(value) && value >= 0 && value <= most) return;
  throw new RpmbError('OPTIONS', `${option} ${value}`, 'out of range', `give 0 to ${most}`);
}

function openNew(path: string): number {
  // O_EXCL takes no symbolic link either: what is there is never overwritten.
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL;
  try {
    const fd = openSync(path, flags, 0o600);
    fchmodSync(fd, 0o600);
    return fd;
  } catch (error) {
    if (codeOf(error) === 'EEXIST') {
      const remedy = 'choose another name; an RPMB that is removed cannot be had back';
      throw new RpmbError('EXISTS', path, 'is there already', remedy, error);
    }
    const remedy = 'choose a folder this user can write to';
    throw new RpmbError('PERMISSION', path, `cannot be made: ${systemWord(error)}`, remedy, error);
  }
}

function removeNew(path: string, fd: number): void {
  try {
    // Only what we made: the name may have been given to another file since.
    if (lstatSync(path).ino === fstatSync(fd).ino) unlinkSync(path);
  } catch {
    // The error that brought us here says more than this one.
  }
}

function fill(
  path: string,
  fd: number,
  layout: StateLayout,
  options: CreateOptions,
  source: Source | undefined,
  system: RpmbSystem,
): void {
  const bytes = fileBytes(layout);
  preallocate(path, fd, bytes, system);
  const store = new BlockingStore(
    (sink) => new SyncFileStore(fd, storeInfo(path, bytes, false), sink),
  );
  for (let at = 0; at < bytes; at += CHUNK) {
    writeWhole(store, at, new Uint8Array(Math.min(CHUNK, bytes - at)));
  }
  if (source !== undefined) copySource(store, layout, source);
  writeSlots(store, layout, options, system);
  syncWhole(store);
  writeWhole(store, 0, encodeHeader(layout));
  syncWhole(store);
}

/** In one extent where the file system can; what it can't, the zeroes written next do. */
function preallocate(path: string, fd: number, bytes: number, system: RpmbSystem): void {
  try {
    system.fallocate(fd, 0, 0, bytes);
  } catch (error) {
    if (codeOf(error) === 'EOPNOTSUPP' || codeOf(error) === 'ENOSYS') return;
    throw systemError(path, `${bytes} bytes cannot be allocated`, error);
  }
}

function copySource(store: BlockingStore, layout: StateLayout, source: Source): void {
  const content = new Uint8Array(source.size);
  let done = 0;
  while (done < content.length) {
    const bytes = readSync(source.fd, content, done, content.length - done, done);
    if (bytes === 0) break;
    done += bytes;
  }
  if (done > 0) writeWhole(store, dataOffset(layout), content.subarray(0, done));
}

/** Both slots say the same: at any later time one that is not whole is a commit that was cut off. */
function writeSlots(
  store: BlockingStore,
  layout: StateLayout,
  options: CreateOptions,
  system: RpmbSystem,
): void {
  const { key, wrapKey: wrapper } = options;
  const storedKey =
    key === undefined || wrapper === undefined
      ? key
      : wrapKey(wrapper, layout.id, key, (into) => system.getRandom(into));
  const counter = options.initialCounter ?? 0;
  const header = new Uint8Array(SLOT_HEADER_BYTES);
  for (let sequence = 0; sequence < SLOTS; sequence++) {
    const content = { sequence, counter, address: 0, blockCount: 0, storedKey };
    encodeSlot(layout, content, [], header);
    writeWhole(store, slotOffset(layout, sequence), header);
  }
  header.fill(0);
}

/** The name is durable too. */
function syncFolder(path: string): void {
  const folder = openSync(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
}
