import { BlockType, SECTOR_BYTES } from '../block/index.ts';
import type { Addon } from '../native/index.ts';
import type { MemoryPiece } from '../transport/vhost-user/index.ts';
import { type QueueLayout, RING_ENTRIES, RING_INDEX, SplitDriver } from '../virtio/index.ts';

const PAGE = 4096;
const QUEUE_SIZE = 256;
/** Chains in the ring, of three descriptors at most; so many may be in flight. */
const CHAINS = 64;
const HEADER_BYTES = 16;

/** The ring, headers, status bytes and indirect tables; then data. */
const LOWER_BYTES = 4 * PAGE;
const UPPER_BYTES = PAGE * CHAINS;
/** Where data is when it is a region of its own. */
const FAR_START = 2 ** 32;

/** A disk so large that its offsets are no 31-bit numbers; half of the requests go there. */
export const DISK_BYTES = 2 ** 32 + 2 ** 21;
const FAR_SECTOR = 2 ** 32 / SECTOR_BYTES;

export interface RehearsalRingOptions {
  /** One request in eight is a flush. */
  readonly flushes: boolean;
  /** Data is in another region than the rings, far away. */
  readonly twoRegions: boolean;
}

/**
 * A split ring (virtio 1.3 §2.7) whose chains are written once: reads and writes of a page, some of
 * them through indirect tables. SplitDriver writes them and then rests: to send requests is to move the
 * avail index on. Where it ran for each request, the first second of a disk over VDUSE had 10,415 reads
 * instead of 10,653 (means of six; single ones differ by more).
 */
export class RehearsalRing {
  readonly pieces: readonly MemoryPiece[];
  readonly layout: QueueLayout;
  readonly #close: () => void;
  readonly #avail: Uint16Array;
  readonly #used: Uint16Array;
  #sent = 0;
  #batches = 0;

  /** Throws the system's error where there is no memory or no descriptor to be had. */
  constructor(addon: Addon, { flushes, twoRegions }: RehearsalRingOptions) {
    const bytes = LOWER_BYTES + UPPER_BYTES;
    const memory = addon.memfd('vduse-rehearsal', bytes);
    let buffer: ArrayBuffer;
    try {
      const mapping = addon.mmap(memory.fd, bytes, 0, true);
      this.#close = () => {
        mapping.unmap();
        memory.close();
      };
      buffer = mapping.buffer;
    } catch (error) {
      memory.close();
      throw error;
    }
    this.pieces = twoRegions
      ? [
          piece(memory.fd, 1, 0, 0, LOWER_BYTES),
          piece(memory.fd, 2, FAR_START, LOWER_BYTES, UPPER_BYTES),
        ]
      : [piece(memory.fd, 1, 0, 0, bytes)];
    const lower = {
      start: 0,
      length: LOWER_BYTES,
      u8: new Uint8Array(buffer),
      u16: new Uint16Array(buffer),
      u32: new Uint32Array(buffer),
    };
    const driver = new SplitDriver(lower, { size: QUEUE_SIZE, indirect: true, eventIndex: true });
    this.layout = driver.layout;
    this.#avail = driver.avail;
    this.#used = driver.used;
    const dataStart = twoRegions ? FAR_START : LOWER_BYTES;
    for (let i = 0; i < CHAINS; i++) {
      addChain(driver, lower.u32, i, dataStart + PAGE * i, flushes && i % 8 === 7);
    }
    // All entries of the ring, the same again and again; none of them is sent yet.
    for (let i = CHAINS; i < QUEUE_SIZE; i += CHAINS) {
      this.#avail.copyWithin(RING_ENTRIES + i, RING_ENTRIES, RING_ENTRIES + CHAINS);
    }
    this.#avail[RING_INDEX] = 0;
  }

  /**
   * Make the next `count` chains available; at most CHAINS may be in flight. A signal is asked for at the
   * first or at the last, by turns.
   */
  send(count: number): void {
    const from = this.#batches++ % 2 === 0 ? count : 1;
    this.#sent = (this.#sent + count) & 0xffff;
    this.#avail[RING_ENTRIES + QUEUE_SIZE] = (this.#sent - from) & 0xffff;
    Atomics.store(this.#avail, RING_INDEX, this.#sent);
  }

  /** All that was sent was answered. */
  get idle(): boolean {
    return Atomics.load(this.#used, RING_INDEX) === this.#sent;
  }

  close(): void {
    this.#close();
  }
}

/** Write the header and the descriptors of a ring's `chain`th request; `words` begin at address 0. */
function addChain(
  driver: SplitDriver,
  words: Uint32Array,
  chain: number,
  dataAt: number,
  flush: boolean,
): void {
  const read = chain % 2 === 0;
  const header = { address: driver.allocate(HEADER_BYTES), length: HEADER_BYTES };
  const data = { address: dataAt, length: PAGE };
  const status = { address: driver.allocate(1), length: 1 };
  const block = chain * (PAGE / SECTOR_BYTES);
  words[header.address / 4] = flush ? BlockType.Flush : read ? BlockType.In : BlockType.Out;
  words[header.address / 4 + 2] = chain % 8 < 4 ? block : FAR_SECTOR + block;
  driver.add(read || flush ? [header] : [header, data], read ? [data, status] : [status], {
    indirect: chain % 8 === 2,
  });
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
