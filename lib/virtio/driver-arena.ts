import type { DriverMemory } from './driver.ts';

/** Gives out guest memory from front to back. */
export class Arena {
  readonly memory: DriverMemory;
  #next: number;

  constructor(memory: DriverMemory, offset: number) {
    this.memory = memory;
    this.#next = offset;
  }

  /** The guest address of `length` bytes. */
  allocate(length: number, alignment: number): number {
    const { start } = this.memory;
    const address = Math.ceil((start + this.#next) / alignment) * alignment;
    const end = address - start + length;
    if (end > this.memory.length) {
      throw new RangeError(`driver memory is used up: ${length} more bytes do not fit`);
    }
    this.#next = end;
    return address;
  }

  /** A ring part: its address and views of it. */
  part(length: number, alignment: number): { address: number; u16: Uint16Array; u32: Uint32Array } {
    const address = this.allocate(length, alignment);
    const offset = address - this.memory.start;
    const { u16, u32 } = this.memory;
    return {
      address,
      u16: u16.subarray(offset / 2, (offset + length) / 2),
      u32: u32.subarray(Math.floor(offset / 4), (offset + length) / 4),
    };
  }
}

const TWO_32 = 2 ** 32;

/** Write the address and length of a descriptor: 32-bit words `at` to `at + 2`. */
export function putBuffer(words: Uint32Array, at: number, address: number, length: number): void {
  words[at] = address % TWO_32;
  words[at + 1] = address / TWO_32;
  words[at + 2] = length;
}
