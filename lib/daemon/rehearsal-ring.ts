import { BlockType, SECTOR_BYTES } from '../block/index.ts';
import type { Addon } from '../native/index.ts';
import type { MemoryPiece } from '../transport/vhost-user/index.ts';
import type { QueueLayout } from '../virtio/index.ts';

const PAGE = 4096;
const QUEUE_SIZE = 256;
/** Descriptors of a chain: header, data, status. */
const CHAIN = 3;
/** Chains in the ring; so many may be in flight. */
const CHAINS = 64;

const DESC = 0;
const AVAIL = DESC + 16 * QUEUE_SIZE;
const USED = AVAIL + PAGE;
/** A cell a chain: its header, its status byte at 32, and its indirect table at 64. */
const CELLS = USED + PAGE;
const CELL = 128;
const STATUS_AT = 32;
const TABLE_AT = 64;
/** Rings and headers, then data. */
const LOWER_BYTES = CELLS + CELL * CHAINS;
const UPPER_BYTES = PAGE * CHAINS;
/** Where data is when it is a region of its own. */
const FAR_START = 2 ** 32;

const DESC_NEXT = 1;
const DESC_WRITE = 2;
const DESC_INDIRECT = 4;

/** A disk so large that its offsets are no 31-bit numbers; half of the requests go there. */
export const DISK_BYTES = 2 ** 33;
const FAR_SECTOR = 2 ** 32 / SECTOR_BYTES;

const INDEX = 1;
const ENTRIES = 2;

export interface RehearsalRingOptions {
  /** One request in eight is a flush. */
  readonly flushes: boolean;
  /** Data is in another region than the rings, far away. */
  readonly twoRegions: boolean;
}

/**
 * A split ring (virtio 1.3 §2.7) whose chains are written once: reads and writes of a page, some of
 * them through indirect tables. What it has the device do costs the driver next to nothing: to send
 * requests is to move the avail index on.
 */
export class RehearsalRing {
  readonly pieces: readonly MemoryPiece[];
  readonly layout: QueueLayout = {
    size: QUEUE_SIZE,
    desc: DESC,
    driver: AVAIL,
    device: USED,
    packed: false,
    indirect: true,
    eventIndex: true,
    position: { avail: 0, used: 0 },
  };
  readonly #close: () => void;
  readonly #dataStart: number;
  readonly #words: Uint32Array;
  readonly #avail: Uint16Array;
  readonly #used: Uint16Array;
  #sent = 0;
  #batches = 0;

  /** Throws the system's error where there is no memory or no descriptor to be had. */
  constructor(addon: Addon, { flushes, twoRegions }: RehearsalRingOptions) {
    const bytes = LOWER_BYTES + UPPER_BYTES;
    const memory = addon.memfd('vduse-rehearsal', bytes);
    try {
      const mapping = addon.mmap(memory.fd, bytes, 0, true);
      this.#close = () => {
        mapping.unmap();
        memory.close();
      };
      this.#words = new Uint32Array(mapping.buffer);
      this.#avail = new Uint16Array(mapping.buffer, AVAIL, ENTRIES + QUEUE_SIZE + 1);
      this.#used = new Uint16Array(mapping.buffer, USED, ENTRIES);
    } catch (error) {
      memory.close();
      throw error;
    }
    this.#dataStart = twoRegions ? FAR_START : LOWER_BYTES;
    this.pieces = twoRegions
      ? [
          piece(memory.fd, 1, 0, 0, LOWER_BYTES),
          piece(memory.fd, 2, FAR_START, LOWER_BYTES, UPPER_BYTES),
        ]
      : [piece(memory.fd, 1, 0, 0, bytes)];
    for (let i = 0; i < CHAINS; i++) this.#writeChain(i, flushes && i % 8 === 7);
    for (let i = 0; i < QUEUE_SIZE; i++) this.#avail[ENTRIES + i] = CHAIN * (i % CHAINS);
  }

  /**
   * Make the next `count` chains available; at most CHAINS may be in flight. A signal is asked for at the
   * first or at the last, by turns.
   */
  send(count: number): void {
    const from = this.#batches++ % 2 === 0 ? count : 1;
    this.#sent = (this.#sent + count) & 0xffff;
    this.#avail[ENTRIES + QUEUE_SIZE] = (this.#sent - from) & 0xffff;
    Atomics.store(this.#avail, INDEX, this.#sent);
  }

  /** All that was sent was answered. */
  get idle(): boolean {
    return Atomics.load(this.#used, INDEX) === this.#sent;
  }

  close(): void {
    this.#close();
  }

  #writeChain(chain: number, flush: boolean): void {
    const cell = CELLS + CELL * chain;
    const read = chain % 2 === 0;
    this.#words[cell / 4] = flush ? BlockType.Flush : read ? BlockType.In : BlockType.Out;
    const block = chain * (PAGE / SECTOR_BYTES);
    this.#words[cell / 4 + 2] = chain % 8 < 4 ? block : FAR_SECTOR + block;
    const head = CHAIN * chain;
    const indirect = chain % 8 === 2;
    const table = indirect ? cell + TABLE_AT : DESC;
    let index = indirect ? 0 : head;
    const put = (address: number, length: number, flags: number) => {
      const next = (flags & DESC_NEXT) === 0 ? 0 : index + 1;
      this.#writeDescriptor(table + 16 * index++, address, length, flags, next);
    };
    put(cell, 16, DESC_NEXT);
    if (!flush) put(this.#dataStart + PAGE * chain, PAGE, DESC_NEXT | (read ? DESC_WRITE : 0));
    put(cell + STATUS_AT, 1, DESC_WRITE);
    if (indirect) this.#writeDescriptor(DESC + 16 * head, table, 16 * index, DESC_INDIRECT, 0);
  }

  #writeDescriptor(at: number, address: number, length: number, flags: number, next: number): void {
    this.#words[at / 4] = address;
    this.#words[at / 4 + 1] = address / 2 ** 32;
    this.#words[at / 4 + 2] = length;
    this.#words[at / 4 + 3] = flags | (next << 16);
  }
}

function piece(
  fd: number,
  id: number,
  guestAddress: number,
  mapOffset: number,
  length: number,
): MemoryPiece {
  return { id, guestAddress, length, fd, mapOffset, mapLength: length, skip: 0 };
}
