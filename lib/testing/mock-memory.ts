import { Access, GuestMemory, type MemoryRegion } from '../virtio/index.ts';

/** Bytes around a region that nobody may touch, and what they hold. */
const GUARD = 64;
const GUARD_BYTE = 0xa5;

interface Backing {
  readonly region: MemoryRegion;
  readonly bytes: Uint8Array;
}

/**
 * Guest memory of plain ArrayBuffers. Each region gets its own buffer with guard bytes around it
 * and a made-up, distinct process address.
 */
export class MockMemory {
  readonly memory: GuestMemory;
  readonly #backings: Backing[] = [];
  #nextAddress = 0x7f00_0000_0000;

  constructor(resolve?: (address: number) => MemoryRegion | undefined) {
    this.memory = new GuestMemory(resolve);
  }

  /** Add a region at guest address `start`. */
  add(start: number, length: number, access: Access = Access.ReadWrite): MemoryRegion {
    const region = this.create(start, length, access);
    this.memory.add(region);
    return region;
  }

  /** Make a region without adding it, for a resolver to return. */
  create(start: number, length: number, access: Access = Access.ReadWrite): MemoryRegion {
    const buffer = new ArrayBuffer(Math.ceil((length + 2 * GUARD) / 4) * 4);
    // A large region costs nothing until it is touched.
    const bytes = new Uint8Array(buffer);
    bytes.fill(GUARD_BYTE, 0, GUARD);
    bytes.fill(GUARD_BYTE, GUARD + length);
    const address = this.#nextAddress;
    this.#nextAddress += Math.ceil(length / 4096) * 4096 + 4096;
    const region = {
      start,
      length,
      access,
      address,
      u8: new Uint8Array(buffer, GUARD, length),
      u16: new Uint16Array(buffer, GUARD, Math.floor(length / 2)),
      u32: new Uint32Array(buffer, GUARD, Math.floor(length / 4)),
    };
    this.#backings.push({ region, bytes });
    return region;
  }

  /** Detach a region's bytes, as unmapping does; it stays in `memory` unless it is removed there. */
  vanish(region: MemoryRegion): void {
    structuredClone(region.u8.buffer, { transfer: [region.u8.buffer as ArrayBuffer] });
  }

  /** Write bytes at a guest address, over region borders; access is not asked for. */
  write(address: number, bytes: Uint8Array): void {
    for (let i = 0; i < bytes.length; i++) {
      const region = this.#at(address + i);
      region.u8[address + i - region.start] = bytes[i]!;
    }
  }

  /** Read bytes at a guest address, over region borders. */
  read(address: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    for (let i = 0; i < length; i++) {
      const region = this.#at(address + i);
      bytes[i] = region.u8[address + i - region.start]!;
    }
    return bytes;
  }

  /** True while nothing was written outside the regions. */
  get intact(): boolean {
    return this.#backings.every(
      ({ region, bytes }) =>
        bytes.length === 0 ||
        (bytes.subarray(0, GUARD).every(isGuard) &&
          bytes.subarray(GUARD + region.length).every(isGuard)),
    );
  }

  #at(address: number): MemoryRegion {
    const region = this.memory.find(address);
    if (region === undefined) throw new RangeError(`0x${address.toString(16)}: not in memory`);
    return region;
  }
}

function isGuard(byte: number): boolean {
  return byte === GUARD_BYTE;
}
