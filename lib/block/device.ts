import { MAX_TOKENS, type Store, type StoreFactory, type StoreSink } from '../store/store.ts';
import type { Chain, MemoryRegion, QueuePort } from '../virtio/index.ts';
import { type BlockOptions, encodeSerial } from './config.ts';
import {
  BlockStatus,
  BlockType,
  SERIAL_BYTES,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_WRITE_ZEROES,
} from './features.ts';
import { BlockRequest, NOWHERE, RequestParser } from './request.ts';

/** What a queue counts, by index into the array it was given. */
export const BlockCounter = { Requests: 0, Bytes: 1, Errors: 2 } as const;
export const BLOCK_COUNTERS = 3;

export interface BlockQueueSetup {
  readonly port: QueuePort;
  /** Makes the queue's own channel to the store. */
  readonly store: StoreFactory;
  readonly options: BlockOptions;
  /** What the driver negotiated. */
  readonly driverFeatures: bigint;
  /** `BLOCK_COUNTERS` numbers, perhaps in shared memory. */
  readonly counters: Float64Array;
}

/** What a head waits for. */
const Waiting = { Nothing: 0, Read: 1, Write: 2, Ranges: 3, Sync: 4 } as const;

/** The ranges of one request that are still to be worked on. */
interface RangeJob {
  readonly type: number;
  next: number;
  readonly offsets: Float64Array;
  readonly lengths: Float64Array;
  readonly unmaps: Uint8Array;
}

/**
 * Serves one queue of a block device: executes what the parser understood on a store, and completes
 * each head once. A head's state lies in arrays, so reads, writes and flushes allocate nothing.
 */
export class BlockQueueDevice implements StoreSink {
  /**
   * Writes are durable before they complete: always where the driver has no FLUSH to ask for it
   * (virtio 1.3 §5.2.6.2), else as a driver with CONFIG_WCE sets `writeback` (§5.2.5.2).
   */
  writeThrough: boolean;

  readonly #port: QueuePort;
  readonly #store: Store;
  readonly #parser: RequestParser;
  readonly #request = new BlockRequest();
  readonly #serial: Uint8Array;
  readonly #counters: Float64Array;

  readonly #waiting = new Uint8Array(MAX_TOKENS);
  readonly #statusRegions: MemoryRegion[] = new Array(MAX_TOKENS).fill(NOWHERE);
  readonly #statusOffsets = new Uint32Array(MAX_TOKENS);
  /** Writable bytes before the status byte. */
  readonly #spaces = new Float64Array(MAX_TOKENS);
  /** Bytes a read or write is to move. */
  readonly #lengths = new Uint32Array(MAX_TOKENS);
  readonly #jobs = new Map<number, RangeJob>();

  constructor(setup: BlockQueueSetup) {
    const { options, driverFeatures } = setup;
    this.#port = setup.port;
    this.#counters = setup.counters;
    this.#serial = encodeSerial(options.serial);
    this.#parser = new RequestParser({
      capacity: options.capacity,
      blockSize: options.blockSize,
      readOnly: options.readOnly,
      discard: (driverFeatures & VIRTIO_BLK_F_DISCARD) !== 0n,
      writeZeroes: (driverFeatures & VIRTIO_BLK_F_WRITE_ZEROES) !== 0n,
    });
    this.writeThrough = (driverFeatures & VIRTIO_BLK_F_FLUSH) === 0n;
    this.#store = setup.store(this);
  }

  begin(chain: Chain): void {
    const request = this.#request;
    const head = chain.head;
    if (!this.#parser.parse(chain, request)) {
      this.#count(0, true);
      this.#port.fail('no-status-byte', head, chain.readableBytes);
      return;
    }
    this.#statusRegions[head] = request.statusRegion;
    this.#statusOffsets[head] = request.statusOffset;
    this.#spaces[head] = request.space;
    this.#lengths[head] = 0;
    if (request.status !== BlockStatus.Ok) {
      this.#finish(head, request.status, 0);
      return;
    }
    switch (request.type) {
      case BlockType.In:
      case BlockType.Out:
        this.#transfer(chain, request);
        break;
      case BlockType.Flush:
        this.#sync(head);
        break;
      case BlockType.GetId:
        this.#finish(head, BlockStatus.Ok, chain.copyIn(0, this.#serial, 0, idBytes(request)));
        break;
      default:
        this.#beginRanges(head, request);
    }
  }

  completed(head: number, result: number): void {
    const waiting = this.#waiting[head];
    if (waiting === Waiting.Read) {
      // Of a read cut short the first bytes are there; of one that failed none need be.
      if (result === this.#lengths[head]) this.#finish(head, BlockStatus.Ok, result);
      else this.#finish(head, BlockStatus.IoError, Math.max(0, result));
    } else if (waiting === Waiting.Write) {
      if (result === this.#lengths[head]) this.#settle(head);
      else this.#finish(head, BlockStatus.IoError, 0);
    } else if (waiting === Waiting.Sync) {
      this.#finish(head, result === 0 ? BlockStatus.Ok : BlockStatus.IoError, 0);
    } else if (waiting === Waiting.Ranges) {
      this.#rangeCompleted(head, result);
    } else {
      throw new Error(`block: the store completed token ${head}, which waits for nothing`);
    }
  }

  /** Forget what is held; the store has nothing in flight for this queue. */
  reset(): void {
    this.#waiting.fill(Waiting.Nothing);
    this.#statusRegions.fill(NOWHERE);
    this.#jobs.clear();
  }

  /** Release the queue's channel to the store. */
  close(): void {
    this.#store.close();
  }

  #transfer(chain: Chain, request: BlockRequest): void {
    const head = chain.head;
    const store = this.#store;
    if (request.length === 0) {
      this.#finish(head, BlockStatus.Ok, 0);
      return;
    }
    this.#lengths[head] = request.length;
    if (request.type === BlockType.In) {
      this.#waiting[head] = Waiting.Read;
      store.read(head, request);
    } else {
      this.#waiting[head] = Waiting.Write;
      store.write(head, request);
    }
    let segment = request.segment;
    let skip = request.skip;
    let left = request.length;
    while (left > 0) {
      const bytes = Math.min(chain.lengths[segment]! - skip, left);
      store.addMemory(chain.regions[segment]!, chain.offsets[segment]! + skip, bytes);
      left -= bytes;
      segment++;
      skip = 0;
    }
  }

  /** A flush, or the one behind a write that must be durable: both end the request. */
  #sync(head: number): void {
    this.#waiting[head] = Waiting.Sync;
    this.#store.flush(head);
  }

  /** What was written is in the store: answer, once it is as durable as the driver expects. */
  #settle(head: number): void {
    if (this.writeThrough) this.#sync(head);
    else this.#finish(head, BlockStatus.Ok, 0);
  }

  /** Ranges are worked on one after the other: a token stands for one operation at a time. */
  #beginRanges(head: number, request: BlockRequest): void {
    const { type, rangeCount, rangeOffsets, rangeLengths, rangeUnmaps } = request;
    if (rangeCount === 0) {
      this.#finish(head, BlockStatus.Ok, 0);
      return;
    }
    const job = {
      type,
      next: 0,
      offsets: rangeOffsets.slice(0, rangeCount),
      lengths: rangeLengths.slice(0, rangeCount),
      unmaps: rangeUnmaps.slice(0, rangeCount),
    };
    this.#jobs.set(head, job);
    this.#waiting[head] = Waiting.Ranges;
    this.#beginRange(head, job);
  }

  #beginRange(head: number, job: RangeJob): void {
    const index = job.next++;
    const offset = job.offsets[index]!;
    const length = job.lengths[index]!;
    if (job.type === BlockType.Discard) this.#store.discard(head, offset, length);
    else this.#store.writeZeroes(head, offset, length, job.unmaps[index] !== 0);
  }

  #rangeCompleted(head: number, result: number): void {
    const job = this.#jobs.get(head)!;
    if (result === 0 && job.next < job.offsets.length) {
      this.#beginRange(head, job);
      return;
    }
    this.#jobs.delete(head);
    if (result !== 0) this.#finish(head, BlockStatus.IoError, 0);
    else if (job.type === BlockType.WriteZeroes) this.#settle(head);
    else this.#finish(head, BlockStatus.Ok, 0);
  }

  /**
   * Answer a head. The used length counts bytes the driver may trust from the first writable one on
   * (virtio 1.3 §2.7.8.2): `valid` bytes of data, and the status byte only where it comes right behind
   * them. A failed read that reported all its space would hand out what the guest's buffer held.
   */
  #finish(head: number, status: number, valid: number): void {
    this.#statusRegions[head]!.u8[this.#statusOffsets[head]!] = status;
    this.#waiting[head] = Waiting.Nothing;
    this.#count(status === BlockStatus.Ok ? this.#lengths[head]! : 0, status !== BlockStatus.Ok);
    this.#port.complete(head, valid === this.#spaces[head] ? valid + 1 : valid);
  }

  #count(bytes: number, failed: boolean): void {
    const counters = this.#counters;
    counters[BlockCounter.Requests] = counters[BlockCounter.Requests]! + 1;
    counters[BlockCounter.Bytes] = counters[BlockCounter.Bytes]! + bytes;
    if (failed) counters[BlockCounter.Errors] = counters[BlockCounter.Errors]! + 1;
  }
}

/** 20 bytes; a shorter buffer gets the beginning, as elsewhere, and a longer one nothing more. */
function idBytes(request: BlockRequest): number {
  return Math.min(SERIAL_BYTES, request.space);
}
