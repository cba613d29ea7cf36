import type { Addon, IoPool } from '../native/index.ts';
import { ROW, ROW_WORDS } from '../native/index.ts';
import type { EventHandler, IoPolicy } from './io-engine.ts';
import { IoEngine } from './io-engine.ts';

const EINTR = -4;

/**
 * The I/O engine where io_uring is not allowed: what may wait goes to a small pool of native
 * threads, and the thread itself sleeps in ppoll.
 */
export class PoolEngine extends IoEngine {
  readonly name = 'pool';
  readonly #pool: IoPool;
  /** Pairs fd, revents for ppoll; the pool's eventfd first. */
  #fds: Int32Array;
  #fdCount = 1;
  #keys: number[] = [-1];
  readonly #pairs = new Int32Array(2 * 128);

  constructor(addon: Addon, policy: IoPolicy, threads = 4) {
    super(addon, policy);
    this.#pool = addon.ioPool(threads);
    this.#fds = new Int32Array(2 * 16);
    this.#fds[0] = this.#pool.eventFd;
  }

  watch(fd: number, key: number): void {
    if (this.#fdCount * 2 === this.#fds.length) {
      const grown = new Int32Array(this.#fds.length * 2);
      grown.set(this.#fds);
      this.#fds = grown;
    }
    this.#fds[this.#fdCount * 2] = fd;
    this.#keys[this.#fdCount++] = key;
  }

  unwatch(key: number): void {
    const index = this.#keys.indexOf(key, 1);
    if (index < 0) return;
    const last = --this.#fdCount;
    this.#keys[index] = this.#keys[last]!;
    this.#keys.length = last;
    this.#fds[index * 2] = this.#fds[last * 2]!;
    this.#fds[index * 2 + 1] = 0;
  }

  ready(): boolean {
    return false;
  }

  protected enter(timeoutUs: number, onEvent: EventHandler): void {
    const ready = this.addon.signalAndPoll(
      this.#fds,
      this.#fdCount,
      timeoutUs,
      this.signals,
      this.signalCount,
    );
    this.signalsSent();
    this.clearTable();
    if (ready < 0 && ready !== EINTR) throw new Error(`ppoll failed: errno ${-ready}`);
    if (ready > 0) this.#deliver(onEvent);
  }

  close(): void {
    this.#pool.close();
    this.table.close();
  }

  protected start(row: number, slot: number): void {
    this.table.rows[row * ROW_WORDS + ROW.user] = slot + 1;
    this.#pool.submit(this.table.rowBuffer, this.table.vectorBuffer, row, 1);
  }

  #deliver(onEvent: EventHandler): void {
    // Handlers may watch and unwatch: go by a copy of what was ready.
    const readyKeys: number[] = [];
    for (let i = 1; i < this.#fdCount; i++) {
      if (this.#fds[i * 2 + 1] === 0) continue;
      this.addon.eventfdRead(this.#fds[i * 2]!);
      readyKeys.push(this.#keys[i]!);
    }
    if (this.#fds[1] !== 0) this.#reap();
    for (const key of readyKeys) this.event(key, onEvent);
  }

  #reap(): void {
    const pairs = this.#pairs;
    let count: number;
    do {
      count = this.#pool.reap(pairs);
      for (let i = 0; i < count; i++) this.finish(pairs[i * 2]! - 1, pairs[i * 2 + 1]!);
    } while (count * 2 === pairs.length);
  }
}
