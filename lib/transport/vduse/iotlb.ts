import { fstatSync } from 'node:fs';
import type { Addon, Mapping } from '../../native/index.ts';
import type { MemorySource } from '../../reactor/index.ts';
import type { Access, MemoryRegion } from '../../virtio/index.ts';
import { GuestMemory } from '../../virtio/index.ts';

/** The most of a guest's memory one mapping covers (external buffers end at 4 GiB). */
const WINDOW = 2 ** 31;

/** The largest page there is. */
const MAX_PAGE = 2 ** 30;

/** The name under which the daemon's worker offers this source. */
export const VDUSE_MEMORY = 'vduse';

export interface VduseMemoryOptions {
  /** The device's descriptor. */
  readonly fd: number;
}

/**
 * Guest memory through the kernel's IOTLB: regions are mapped when they are first touched. A miss is
 * never remembered (the bounce region appears with the first DMA map, after DRIVER_OK), and all
 * mappings go when the kernel says that the IOTLB changed.
 */
export class VduseMemory implements MemorySource {
  readonly memory: GuestMemory;
  readonly #addon: Addon;
  readonly #fd: number;
  readonly #mappings: Mapping[] = [];

  constructor(addon: Addon, options: VduseMemoryOptions) {
    this.#addon = addon;
    this.#fd = options.fd;
    this.memory = new GuestMemory((address) => this.#resolve(address));
  }

  poisoned(): boolean {
    return this.#mappings.some((mapping) => mapping.poisoned);
  }

  replace(): void {
    this.release();
  }

  release(): void {
    this.memory.clear();
    for (const mapping of this.#mappings) mapping.unmap();
    this.#mappings.length = 0;
  }

  #resolve(address: number): MemoryRegion | undefined {
    const at = BigInt(address);
    let entry: ReturnType<Addon['vduseIotlbGetFd']>;
    try {
      entry = this.#addon.vduseIotlbGetFd(this.#fd, at, at);
    } catch (error) {
      // EINVAL: nothing is mapped there (now). EPERM: the kernel gave the device up.
      const { code } = error as { code?: string };
      if (code === 'EINVAL' || code === 'EPERM') return undefined;
      throw error;
    }
    try {
      return this.#map(entry, address);
    } finally {
      entry.fd.close();
    }
  }

  /** Map the window around `address`: a region can be larger than a mapping. */
  #map(entry: ReturnType<Addon['vduseIotlbGetFd']>, address: number): MemoryRegion | undefined {
    const regionStart = Number(entry.start);
    const regionEnd = Number(entry.last) + 1;
    const window = regionStart + Math.floor((address - regionStart) / WINDOW) * WINDOW;
    const length = Math.min(regionEnd - window, WINDOW);
    // A ring's region is no page multiple, nor is one in huge pages a multiple of those: what is
    // around it in its page is mapped with it.
    const page = this.#pageOf(entry.fd.fd);
    const fileOffset = Number(entry.offset) + (window - regionStart);
    const slack = fileOffset % page;
    const writable = (entry.perm & 2) !== 0;
    const mapping = this.#addon.mmap(
      entry.fd.fd,
      Math.ceil((length + slack) / page) * page,
      fileOffset - slack,
      writable,
    );
    this.#mappings.push(mapping);
    return regionOf(mapping, slack, window, length, entry.perm as Access);
  }

  /** The unit a file is mapped in. hugetlbfs tells its page as the block size, and takes no less. */
  #pageOf(fd: number): number {
    const page = this.#addon.pageSize();
    const { blksize } = fstatSync(fd);
    return blksize % page === 0 && blksize <= MAX_PAGE ? blksize : page;
  }
}

/** A region over part of a mapping. */
function regionOf(
  mapping: Mapping,
  from: number,
  start: number,
  length: number,
  access: Access,
): MemoryRegion {
  const { buffer } = mapping;
  return {
    start,
    length,
    access,
    address: mapping.address + from,
    u8: new Uint8Array(buffer, from, length),
    u16: new Uint16Array(buffer, from, length >>> 1),
    u32: new Uint32Array(buffer, from, length >>> 2),
  };
}
