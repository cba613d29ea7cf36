import type { Addon, FdWatcher, OwnedFd } from '../native/index.ts';
import type { DriverQueue, GuestBuffer } from '../virtio/index.ts';
import { VhostUserError, violation } from '../virtio/vhost-user-messages.ts';
import { BufferPool, roundUp } from './buffer-pool.ts';

/** Chains of at most so many descriptors go into indirect tables; the driver keeps one for each id. */
export const INDIRECT_DESCRIPTORS = 4;

/** How often a ring without a call descriptor is looked at. */
const POLL_MS = 1;

/** Memory of the guest that buffers are made of. */
export interface BufferMemory {
  /** Guest address of `u8[0]`. */
  readonly start: number;
  readonly u8: Uint8Array;
}

export interface QueueParts {
  readonly index: number;
  readonly driver: DriverQueue;
  readonly indirect: boolean;
  readonly buffers: BufferMemory;
  /** Undefined on a ring without descriptors, which both sides poll. */
  readonly kick: OwnedFd | undefined;
  readonly call: OwnedFd | undefined;
  /** A request that is not answered in this time is rejected; 0 waits for ever. */
  readonly timeoutMs: number;
}

/** How the device answered. */
export interface Completion {
  /** Bytes the device says it wrote, from the first writable one on. */
  readonly written: number;
  /** What is in the writable buffers now, one each. */
  readonly data: Uint8Array[];
}

interface Request {
  readonly readable: readonly Uint8Array[];
  readonly writable: readonly number[];
  /** Bytes of the pool it needs. */
  readonly bytes: number;
  address: number;
  timer: NodeJS.Timeout | undefined;
  resolve(completion: Completion): void;
  reject(error: Error): void;
}

/** One queue of a device that is driven: requests in, promises out. */
export class FrontendQueue {
  readonly index: number;
  /** The ring itself, for those who drive it by hand. */
  readonly driver: DriverQueue;
  readonly buffers: BufferMemory;
  readonly indirect: boolean;
  readonly kick: OwnedFd | undefined;
  readonly call: OwnedFd | undefined;
  readonly #addon: Addon;
  readonly #timeoutMs: number;
  readonly #pool: BufferPool;
  readonly #watcher: FdWatcher | undefined;
  /** In the ring, by chain id. */
  readonly #inRing = new Map<number, Request>();
  /** Waiting for room, in order. */
  readonly #waiting: Request[] = [];
  #kickDue = false;
  #pollTimer: NodeJS.Timeout | undefined;
  #error: Error | undefined;

  constructor(addon: Addon, parts: QueueParts) {
    this.#addon = addon;
    this.index = parts.index;
    this.driver = parts.driver;
    this.indirect = parts.indirect;
    this.buffers = parts.buffers;
    this.kick = parts.kick;
    this.call = parts.call;
    this.#timeoutMs = parts.timeoutMs;
    this.#pool = new BufferPool(parts.buffers.start, parts.buffers.u8.length);
    if (parts.call !== undefined) {
      this.#watcher = addon.watch(parts.call.fd, () => this.#called());
    }
  }

  /** Begin to take answers; the ring is known to the back end. */
  begin(): void {
    if (this.#watcher === undefined) this.driver.disableSignals();
    else {
      this.driver.enableSignals();
      this.#watcher.rearm();
    }
  }

  /** Requests that are not answered yet. */
  get outstanding(): number {
    return this.#inRing.size + this.#waiting.length;
  }

  /** The largest request: bytes of all its buffers. */
  get maxBytes(): number {
    return this.#pool.size;
  }

  /**
   * Send a chain: buffers the device reads, then buffers of the given lengths that it writes. Waits
   * for room where there is none. Rejects when the device does not answer, or goes away.
   */
  submit(readable: readonly Uint8Array[], writable: readonly number[]): Promise<Completion> {
    const count = readable.length + writable.length;
    const lengths = [...readable.map((buffer) => buffer.length), ...writable];
    const bytes = lengths.reduce((sum, length) => sum + roundUp(length), 0);
    if (count === 0 || lengths.some((length) => !Number.isSafeInteger(length) || length <= 0)) {
      return Promise.reject(new RangeError('a request needs buffers, none of them empty'));
    }
    if (bytes > this.#pool.size || count > this.driver.size) {
      return Promise.reject(
        new RangeError(
          `a request of ${count} buffers with ${bytes} bytes: this queue takes ${this.driver.size} with ${this.#pool.size} (see queueSize and bufferBytes)`,
        ),
      );
    }
    if (this.#error !== undefined) return Promise.reject(this.#error);
    return new Promise((resolve, reject) => {
      const request: Request = {
        readable,
        writable,
        bytes,
        address: -1,
        timer: undefined,
        resolve,
        reject,
      };
      this.#limit(request);
      if (this.#waiting.length > 0 || !this.#start(request)) this.#waiting.push(request);
    });
  }

  /** Take what the device has answered and give it to those who wait. */
  drain(): void {
    if (this.#error !== undefined) return;
    try {
      while (this.driver.next()) this.#complete(this.driver.usedId, this.driver.usedLength);
    } catch (error) {
      this.fail(error as Error);
      return;
    }
    while (this.#waiting[0] !== undefined && this.#start(this.#waiting[0])) this.#waiting.shift();
  }

  /** Nothing more will be answered: reject what waits, and what comes. */
  fail(error: Error): void {
    if (this.#error !== undefined) return;
    this.#error = error;
    this.#watcher?.close();
    clearTimeout(this.#pollTimer);
    for (const request of [...this.#inRing.values(), ...this.#waiting]) {
      clearTimeout(request.timer);
      request.reject(error);
    }
    this.#inRing.clear();
    this.#waiting.length = 0;
  }

  /** Let go of the descriptors; after `fail`. */
  close(): void {
    this.kick?.close();
    this.call?.close();
  }

  #limit(request: Request): void {
    if (this.#timeoutMs === 0) return;
    request.timer = setTimeout(() => {
      // Its buffers stay the device's until it answers.
      request.reject(
        new VhostUserError(
          'ERR_VDUSE_VHOST_USER_TIMEOUT',
          undefined,
          `queue ${this.index}: the device did not answer in ${this.#timeoutMs / 1000} s`,
        ),
      );
      const waiting = this.#waiting.indexOf(request);
      if (waiting >= 0) this.#waiting.splice(waiting, 1);
    }, this.#timeoutMs);
  }

  /** Put a request into the ring; false when there is no room. */
  #start(request: Request): boolean {
    const address = this.#pool.take(request.bytes);
    if (address < 0) return false;
    let at = address;
    const place = (length: number): GuestBuffer => {
      const buffer = { address: at, length };
      at += roundUp(length);
      return buffer;
    };
    const readable = request.readable.map((bytes) => {
      const buffer = place(bytes.length);
      this.buffers.u8.set(bytes, buffer.address - this.buffers.start);
      return buffer;
    });
    const writable = request.writable.map(place);
    const count = readable.length + writable.length;
    const indirect = this.indirect && count > 1 && count <= INDIRECT_DESCRIPTORS;
    const id = this.driver.add(readable, writable, { indirect });
    if (id < 0) {
      this.#pool.give(address, request.bytes);
      return false;
    }
    request.address = address;
    this.#inRing.set(id, request);
    this.#kickSoon();
    return true;
  }

  /** One kick for all that is submitted in a turn. */
  #kickSoon(): void {
    if (this.#kickDue) return;
    this.#kickDue = true;
    queueMicrotask(() => {
      this.#kickDue = false;
      if (this.#error !== undefined) return;
      if (this.driver.needsKick() && this.kick !== undefined) {
        this.#addon.eventfdSignal(this.kick.fd);
      }
      if (this.#watcher === undefined) this.#pollSoon();
    });
  }

  #pollSoon(): void {
    this.#pollTimer ??= setTimeout(() => {
      this.#pollTimer = undefined;
      this.drain();
      if (this.#inRing.size > 0) this.#pollSoon();
    }, POLL_MS);
  }

  #called(): void {
    this.#addon.eventfdRead(this.call!.fd);
    do this.drain();
    while (this.#error === undefined && this.driver.enableSignals());
    if (this.#error === undefined) this.#watcher!.rearm();
  }

  #complete(id: number, written: number): void {
    const request = this.#inRing.get(id);
    if (request === undefined) {
      throw violation(undefined, `queue ${this.index}: the device answers chain ${id}, never sent`);
    }
    const room = request.writable.reduce((sum, length) => sum + length, 0);
    if (written > room) {
      throw violation(
        undefined,
        `queue ${this.index}: the device says it wrote ${written} bytes where there are ${room}`,
      );
    }
    this.#inRing.delete(id);
    clearTimeout(request.timer);
    let at = request.address - this.buffers.start;
    for (const bytes of request.readable) at += roundUp(bytes.length);
    const data = request.writable.map((length) => {
      const bytes = this.buffers.u8.slice(at, at + length);
      at += roundUp(length);
      return bytes;
    });
    this.#pool.give(request.address, request.bytes);
    request.resolve({ written, data });
  }
}
