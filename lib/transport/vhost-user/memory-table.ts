import { fstatSync } from 'node:fs';
import type { OwnedFd } from '../../native/index.ts';
import { type RegionDescription, violation } from '../../virtio/vhost-user-messages.ts';
import type { MemoryPiece } from './memory-source.ts';

/** What GET_MAX_MEM_SLOTS answers: as many as the kernel's own vhost takes by default. */
export const MAX_MEMORY_SLOTS = 509;

/** The most guest memory in all; a table can't ask for endless mappings. */
const MAX_TOTAL = 2n ** 44n;

/** Regions begin at page borders, in the guest, in the front end and in the file. */
const PAGE = 4096n;

/** Node-API's limit on the buffer of one mapping. */
const MAX_MAPPING = 2 ** 32;

/**
 * Large regions are cut at multiples of this guest address. Guests allocate rings naturally aligned,
 * so no ring lies across a cut.
 */
const CUT = 2 ** 30;

/** A region of the table; the descriptor belongs to it. */
export interface TableRegion extends RegionDescription {
  readonly fd: OwnedFd;
  /** Which file: the same pair is the same memory. */
  readonly dev: bigint;
  readonly ino: bigint;
  readonly pieces: readonly MemoryPiece[];
}

let nextPiece = 1;

/**
 * A front end's memory, immutable. It holds two translations: rings are given as the front end's own
 * addresses, descriptors as guest addresses (vhost-user, "Vring address description").
 */
export class MemoryTable {
  readonly regions: readonly TableRegion[];

  private constructor(regions: readonly TableRegion[]) {
    this.regions = regions;
  }

  static readonly empty: MemoryTable = new MemoryTable([]);

  /** A table of these regions alone; `fds` are theirs, in order. Throws a violation. */
  static of(
    request: number,
    descriptions: readonly RegionDescription[],
    fds: readonly OwnedFd[],
  ): MemoryTable {
    return descriptions.reduce(
      (table, description, i) => table.with(request, description, fds[i]!),
      MemoryTable.empty,
    );
  }

  /** This table and one more region. */
  with(request: number, description: RegionDescription, fd: OwnedFd): MemoryTable {
    if (this.regions.length >= MAX_MEMORY_SLOTS) {
      throw violation(request, `more than ${MAX_MEMORY_SLOTS} memory regions`);
    }
    const region = openRegion(request, description, fd);
    for (const other of this.regions) checkOverlap(request, region, other);
    const total = this.regions.reduce((sum, { size }) => sum + size, region.size);
    if (total > MAX_TOTAL) throw violation(request, `${total} bytes of memory, too large`);
    return new MemoryTable([...this.regions, region]);
  }

  /**
   * This table without a region, which is named by guest address, user address and size (vhost-user,
   * REM_MEM_REG).
   */
  without(request: number, description: RegionDescription): MemoryTable {
    const left = this.regions.filter(
      (region) =>
        region.guestAddress !== description.guestAddress ||
        region.userAddress !== description.userAddress ||
        region.size !== description.size,
    );
    if (left.length === this.regions.length) {
      throw violation(request, `there is no region ${describe(description)}`);
    }
    return new MemoryTable(left);
  }

  get pieces(): MemoryPiece[] {
    return this.regions.flatMap(({ pieces }) => pieces);
  }

  /**
   * The guest address of `length` bytes at a user address, or undefined where they are not all in
   * one piece.
   */
  translate(userAddress: bigint, length: number): number | undefined {
    for (const region of this.regions) {
      const offset = userAddress - region.userAddress;
      if (offset < 0n || offset >= region.size) continue;
      const address = Number(region.guestAddress + offset);
      const fits = region.pieces.some(
        (piece) =>
          address >= piece.guestAddress && address + length <= piece.guestAddress + piece.length,
      );
      if (fits) return address;
    }
    return undefined;
  }
}

function openRegion(request: number, description: RegionDescription, fd: OwnedFd): TableRegion {
  const { guestAddress, size, userAddress, mmapOffset } = description;
  const what = `region ${describe(description)}`;
  if (size === 0n) throw violation(request, `${what}: of size 0`);
  if (size > MAX_TOTAL) throw violation(request, `${what}: too large`);
  if ([guestAddress, userAddress, mmapOffset].some((address) => address % PAGE !== 0n)) {
    throw violation(request, `${what}: not aligned to pages`);
  }
  if (guestAddress + size > BigInt(Number.MAX_SAFE_INTEGER) || userAddress + size > 2n ** 64n) {
    throw violation(request, `${what}: ends beyond the address space`);
  }
  const file = fstatSync(fd.fd, { bigint: true });
  if (!file.isFile()) throw violation(request, `${what}: its descriptor is no file`);
  if (mmapOffset + size > file.size) {
    throw violation(request, `${what}: ends beyond its file of ${file.size} bytes`);
  }
  return {
    guestAddress,
    size,
    userAddress,
    mmapOffset,
    fd,
    dev: file.dev,
    ino: file.ino,
    pieces: cut(description, fd.fd, granularity(Number(file.blksize))),
  };
}

/**
 * Guest ranges never overlap. User ranges may where they show the same bytes, so that it does not
 * matter which one translates.
 */
function checkOverlap(request: number, a: TableRegion, b: TableRegion): void {
  const guests =
    a.guestAddress < b.guestAddress + b.size && b.guestAddress < a.guestAddress + a.size;
  const users = a.userAddress < b.userAddress + b.size && b.userAddress < a.userAddress + a.size;
  const same =
    a.dev === b.dev &&
    a.ino === b.ino &&
    a.userAddress - a.mmapOffset === b.userAddress - b.mmapOffset;
  if (guests || (users && !same)) {
    throw violation(request, `region ${describe(a)} overlaps region ${describe(b)}`);
  }
}

/** Huge pages are mapped whole; hugetlbfs tells their size as the file's block size. */
function granularity(blockSize: number): number {
  const sane = blockSize > 4096 && blockSize <= CUT && Number.isInteger(Math.log2(blockSize));
  return sane ? blockSize : 4096;
}

function cut(description: RegionDescription, fd: number, granule: number): MemoryPiece[] {
  const pieces: MemoryPiece[] = [];
  const start = Number(description.guestAddress);
  const end = start + Number(description.size);
  const toFile = Number(description.mmapOffset) - start;
  for (let at = start; at < end; ) {
    const mapOffset = Math.floor((at + toFile) / granule) * granule;
    const limit = Math.floor((mapOffset + MAX_MAPPING - toFile) / CUT) * CUT;
    const stop = Math.min(end, limit);
    pieces.push({
      id: nextPiece++,
      guestAddress: at,
      length: stop - at,
      fd,
      mapOffset,
      mapLength: Math.ceil((stop + toFile) / granule) * granule - mapOffset,
      skip: at + toFile - mapOffset,
    });
    at = stop;
  }
  return pieces;
}

function describe({ guestAddress, size }: RegionDescription): string {
  return `0x${guestAddress.toString(16)}+0x${size.toString(16)}`;
}
