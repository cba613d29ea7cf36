import { native } from '../native/index.ts';
import type { GuestBuffer } from '../virtio/index.ts';
import { VhostUserError } from '../virtio/vhost-user-messages.ts';
import { BLOCK_HEADER_BYTES, BlockRequestType } from './block-client.ts';
import { LatencyHistogram } from './latency-histogram.ts';
import type { FrontendQueue } from './queue.ts';

const SECTOR = 512;

/** A status byte that no device writes: the request has not been answered. */
const UNANSWERED = 0xff;

export interface BlockLoadOptions {
  readonly write: boolean;
  /** Requests in flight, at most the queue's size. */
  readonly depth: number;
  /** Bytes a request (4096). */
  readonly blockSize?: number;
  /** Requests go to random blocks of the disk's first `range` bytes. */
  readonly range: number;
  /** How long to go on; answers to what is in flight then are waited for. */
  readonly seconds: number;
  /** Stop after so many requests, if that comes first. */
  readonly requests?: number;
  /** Of the random offsets (1). */
  readonly seed?: number;
}

export interface BlockLoadResult {
  readonly requests: number;
  readonly errors: number;
  readonly seconds: number;
  /** Kicks sent and sleeps begun: how well the two ends batch. */
  readonly kicks: number;
  readonly sleeps: number;
  readonly latency: LatencyHistogram;
}

/** What a request in flight needs, made once and used again and again. */
interface Slot {
  readonly readable: readonly GuestBuffer[];
  readonly writable: readonly GuestBuffer[];
  /** Its header as words, from its first on. */
  readonly header: Uint32Array;
  readonly status: Uint8Array;
}

/**
 * Drive a block queue as fast as it goes and measure: random reads or writes, `depth` of them in
 * flight, nothing allocated per request. Blocks the thread it runs on, so for a worker or a process
 * of its own; the queue must have nothing else in flight. After an error the queue is of no more use.
 */
export function runBlockLoad(queue: FrontendQueue, options: BlockLoadOptions): BlockLoadResult {
  return new BlockLoad(queue, options).run();
}

/** No answer for so long: the back end is gone (the socket is not looked at meanwhile). */
const PATIENCE_US = 10_000_000;

class BlockLoad {
  readonly #queue: FrontendQueue;
  readonly #options: Required<BlockLoadOptions>;
  readonly #slots: Slot[];
  readonly #indirect: { readonly indirect: boolean };
  /** By chain id. */
  readonly #slotOf: Int32Array;
  readonly #since: Float64Array;
  readonly #free: number[] = [];
  readonly #latency = new LatencyHistogram();
  readonly #signals = new Int32Array(3);
  readonly #wait = new Int32Array(2);
  #random: number;
  #sent = 0;
  #done = 0;
  #errors = 0;
  #kicks = 0;
  #sleeps = 0;

  constructor(queue: FrontendQueue, options: BlockLoadOptions) {
    this.#queue = queue;
    this.#options = { blockSize: 4096, requests: Infinity, seed: 1, ...options };
    const { depth, blockSize, range, seed } = this.#options;
    if (queue.kick === undefined || queue.call === undefined) {
      throw new RangeError('the queue has no kick and call descriptors');
    }
    if (queue.outstanding > 0) throw new RangeError('the queue has requests in flight');
    if (!Number.isInteger(depth) || depth < 1 || depth > queue.driver.size) {
      throw new RangeError(`depth ${depth}: not 1 … ${queue.driver.size}`);
    }
    if (blockSize % SECTOR !== 0 || range < blockSize || range / blockSize > 2 ** 32) {
      throw new RangeError(`blocks of ${blockSize} bytes in a range of ${range}`);
    }
    this.#indirect = { indirect: queue.indirect };
    this.#slotOf = new Int32Array(65536).fill(-1);
    this.#since = new Float64Array(depth);
    this.#slots = Array.from({ length: depth }, (_, i) => this.#createSlot(i));
    for (let i = 0; i < depth; i++) this.#free.push(i);
    this.#random = seed | 0 || 1;
    this.#signals[0] = queue.kick.fd;
    this.#signals[1] = -1;
    this.#wait[0] = queue.call.fd;
  }

  run(): BlockLoadResult {
    const { driver } = this.#queue;
    const begin = performance.now();
    const end = begin + this.#options.seconds * 1000;
    let now = begin;
    driver.disableSignals();
    for (;;) {
      if (now < end) this.#fill(now);
      if (this.#done === this.#sent) break;
      this.#await();
      now = performance.now();
      while (driver.next()) this.#answered(driver.usedId, now);
    }
    driver.enableSignals();
    return {
      requests: this.#done,
      errors: this.#errors,
      seconds: (now - begin) / 1000,
      kicks: this.#kicks,
      sleeps: this.#sleeps,
      latency: this.#latency,
    };
  }

  /** Send as many requests as may be in flight. */
  #fill(now: number): void {
    const { driver } = this.#queue;
    const { blockSize, range, requests } = this.#options;
    const blocks = Math.floor(range / blockSize);
    const sectors = blockSize / SECTOR;
    while (this.#free.length > 0 && this.#sent < requests) {
      const index = this.#free[this.#free.length - 1]!;
      const slot = this.#slots[index]!;
      const sector = Math.floor(((this.#next() >>> 0) / 2 ** 32) * blocks) * sectors;
      slot.header[2] = sector;
      slot.header[3] = sector / 2 ** 32;
      slot.status[0] = UNANSWERED;
      const id = driver.add(slot.readable, slot.writable, this.#indirect);
      // The ring is full before the depth is reached: chains of several descriptors.
      if (id < 0) return;
      this.#free.pop();
      this.#slotOf[id] = index;
      this.#since[index] = now;
      this.#sent++;
    }
  }

  /** Kick if that is wanted, then sleep until something was answered: one system call for both. */
  #await(): void {
    const { driver } = this.#queue;
    const kicks = driver.needsKick() ? 1 : 0;
    this.#kicks += kicks;
    if (driver.enableSignals()) {
      if (kicks > 0) native.eventfdSignal(this.#signals[0]!);
    } else {
      this.#sleeps++;
      const ready = native.signalAndPoll(this.#wait, 1, PATIENCE_US, this.#signals, kicks);
      if (ready === 0) {
        throw new VhostUserError(
          'ERR_VDUSE_VHOST_USER_TIMEOUT',
          undefined,
          `queue ${this.#queue.index}: no answer in ${PATIENCE_US / 1e6} s`,
        );
      }
      native.eventfdRead(this.#wait[0]!);
    }
    driver.disableSignals();
  }

  #answered(id: number, now: number): void {
    const index = this.#slotOf[id] ?? -1;
    if (index < 0) throw new RangeError(`the device answers chain ${id}, which was never sent`);
    this.#slotOf[id] = -1;
    this.#latency.add((now - this.#since[index]!) * 1000);
    if (this.#slots[index]!.status[0] !== 0) this.#errors++;
    this.#free.push(index);
    this.#done++;
  }

  /** Xorshift: 32 random bits, never 0; signed, so that they are kept in place. */
  #next(): number {
    let x = this.#random;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#random = x;
    return x;
  }

  #createSlot(index: number): Slot {
    const { buffers } = this.#queue;
    const { blockSize, write } = this.#options;
    // Data on page borders, as an operating system has it; header and status before it.
    const share = Math.ceil(blockSize / 4096) * 4096 + 4096;
    const first = Math.ceil(buffers.start / 4096) * 4096 - buffers.start + index * share;
    if (first + share > buffers.u8.length) {
      throw new RangeError(
        `depth ${index + 1} does not fit in the queue's buffers (see bufferBytes)`,
      );
    }
    const at = buffers.start + first;
    const header = new Uint32Array(buffers.u8.buffer, buffers.u8.byteOffset + first, 4);
    header[0] = write ? BlockRequestType.Write : BlockRequestType.Read;
    header[1] = 0;
    const data = { address: at + 4096, length: blockSize };
    const status = { address: at + 1024, length: 1 };
    const head = { address: at, length: BLOCK_HEADER_BYTES };
    return {
      readable: write ? [head, data] : [head],
      writable: write ? [status] : [data, status],
      header,
      status: buffers.u8.subarray(first + 1024, first + 1025),
    };
  }
}
