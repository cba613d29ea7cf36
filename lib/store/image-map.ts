import { statfsSync } from 'node:fs';
import { type FileMap, native } from '../native/index.ts';
import { createKnowledge } from './cached-pages.ts';
import type { FileCopies } from './file-store.ts';

/** statfs(2) types whose mappings are the page cache that reads and writes use, on disks of this machine. */
const FIT_FILE_SYSTEMS = new Set([
  0xef53, // ext2, ext3, ext4
  0x58465342, // XFS
  0x9123683e, // Btrfs
  0xf2f52010, // F2FS
  0x01021994, // tmpfs
]);

const TWO_32 = 2 ** 32;

/** A mapped image, and what its stores need to copy from and to it. */
export interface ImageMap {
  readonly map: FileMap;
  readonly copies: FileCopies;
}

/** Whether the file system of the file at `path` is known to be fit for it. */
export function isMappable(path: string): boolean {
  return FIT_FILE_SYSTEMS.has(statfsSync(path).type);
}

/** Map a file; undefined where there is no room for it, as everything works without. */
export function mapImage(fd: number, capacity: number, readOnly: boolean): ImageMap | undefined {
  const knowledge = createKnowledge(capacity);
  if (knowledge === undefined) return undefined;
  try {
    const map = native.mapFile(fd, capacity, !readOnly);
    const { address } = map;
    const words = { low: address | 0, high: Math.floor(address / TWO_32) };
    return { map, copies: { address: words, knowledge } };
  } catch {
    return undefined;
  }
}
