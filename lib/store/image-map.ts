import { statfsSync } from 'node:fs';
import { type FileMap, native } from '../native/index.ts';
import { createKnowledge } from './cached-pages.ts';
import type { FileCopies } from './file-store.ts';

/** A statfs(2) type without a disk behind it. */
const TMPFS = 0x01021994;

/** statfs(2) types whose mappings are the page cache that reads and writes use, on disks of this machine. */
const FIT_FILE_SYSTEMS = new Set([
  TMPFS,
  0xef53, // ext2, ext3, ext4
  0x58465342, // XFS
  0x9123683e, // Btrfs
  0xf2f52010, // F2FS
]);

const TWO_32 = 2 ** 32;

/** A mapped image, and what its stores need to copy from and to it. */
export interface ImageMap {
  readonly map: FileMap;
  readonly copies: FileCopies;
}

/**
 * Map the image at `path`; undefined where its file system is not known to be fit, or where there is no
 * room for it: everything works without.
 */
export function mapImage(
  path: string,
  fd: number,
  capacity: number,
  readOnly: boolean,
): ImageMap | undefined {
  const { type } = statfsSync(path);
  if (!FIT_FILE_SYSTEMS.has(type)) return undefined;
  return mapFile(fd, capacity, readOnly, type !== TMPFS);
}

/** Map any file. `writtenBack`: see FileCopies. Undefined where there is no room for it. */
export function mapFile(
  fd: number,
  capacity: number,
  readOnly: boolean,
  writtenBack: boolean,
): ImageMap | undefined {
  const knowledge = createKnowledge(capacity);
  if (knowledge === undefined) return undefined;
  try {
    const map = native.mapFile(fd, capacity, !readOnly);
    const { address } = map;
    const words = { low: address | 0, high: Math.floor(address / TWO_32) };
    return { map, copies: { address: words, knowledge, writtenBack } };
  } catch {
    return undefined;
  }
}
