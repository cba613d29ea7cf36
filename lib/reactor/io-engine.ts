import type { Addon, IoPort, RowOwner } from '../native/index.ts';
import {
  CALL,
  callWords,
  IoFlag,
  IoKind,
  IoTable,
  ROW,
  ROW_WORDS,
  RWF_NOWAIT,
} from '../native/index.ts';

/** errno values the routing looks at (negative, as results carry them). */
export const EAGAIN = -11;
const EOPNOTSUPP = -95;

/** Rows that were run on this thread carry this in `user`; rows handed out carry their slot + 1. */
const RAN_HERE = 0;

/** The most bytes one buffered write may have to be copied on this thread (dirty throttling waits). */
const SYNC_WRITE_LIMIT = 1 << 20;

/** How reads and writes of a page-cached file are run; `auto` is what measures best. */
export type IoPolicy = 'auto' | 'async' | 'sync';

/** What a wait told of: a watched descriptor is readable. `key` is the caller's. */
export type EventHandler = (key: number) => void;

/**
 * The I/O half of a reactor. Rows pushed to the table are routed at `submit`: cached reads in one
 * native RWF_NOWAIT batch, buffered writes in one batch, everything that may wait for a device to
 * the kernel's own queue (or a pool). `wait` is the one place where the thread sleeps.
 */
export abstract class IoEngine implements IoPort {
  readonly table: IoTable;
  /** Operations handed out and not yet completed. */
  inFlight = 0;
  protected readonly addon: Addon;
  /** The words of a kernel entry; see CALL. */
  protected call = new Int32Array(callWords(64));
  /** Signals to send with the next kernel entry: triples fd, index (-1: eventfd), errno out. */
  protected signals = this.call.subarray(CALL.signals);
  protected signalCount = 0;
  // The policy, as comparisons of words that came from another thread are comparisons of text.
  readonly #allAsync: boolean;
  readonly #nowait: boolean;
  readonly #owners: (RowOwner | undefined)[] = [];
  readonly #freeOwners: number[] = [];
  /** By descriptor, 1: its file system refuses RWF_NOWAIT (tmpfs), for its pages are always in memory. */
  #withoutNowait = new Uint8Array(64);
  readonly #timers: { due: number; owner: number; token: number }[] = [];
  /** Per handed-out operation: whose it is. Slots are reused through a free list. */
  #slotOwner = new Int32Array(256);
  #slotToken = new Int32Array(256);
  readonly #freeSlots: number[] = [];
  #slots = 0;
  #routed = 0;
  #routing = false;
  #delivered = false;

  protected constructor(addon: Addon, policy: IoPolicy) {
    this.addon = addon;
    this.#allAsync = policy === 'async';
    this.#nowait = policy === 'auto';
    this.table = new IoTable(addon);
  }

  /** What the ready line and `doctor` call it. */
  abstract readonly name: 'io_uring' | 'pool';

  /** Report `key` each time `fd` becomes readable, until `unwatch`. */
  abstract watch(fd: number, key: number): void;
  abstract unwatch(key: number): void;

  /**
   * Route what was pushed, send pending signals, hand out; then, unless `timeoutUs` is 0, wait for an
   * event or completion at most that long (-1: for ever). Completions and events are delivered
   * before it returns; true when there were any.
   */
  wait(timeoutUs: number, onEvent: EventHandler): boolean {
    this.submit();
    this.#delivered = false;
    this.enter(this.#boundedTimeout(timeoutUs), onEvent);
    this.#fireTimers();
    return this.#delivered;
  }

  /** The kernel entry of `wait`; calls `finish` and `event`. */
  protected abstract enter(timeoutUs: number, onEvent: EventHandler): void;

  /** True when something waits to be delivered (one load, for polling). */
  abstract ready(): boolean;

  abstract close(): void;

  /** Hand a row to the kernel or the pool; `slot` comes back with its completion. */
  protected abstract start(row: number, slot: number): void;

  register(owner: RowOwner): number {
    const index = this.#freeOwners.pop() ?? this.#owners.length;
    this.#owners[index] = owner;
    return index;
  }

  /** The owner must have nothing in flight. */
  unregister(owner: number): void {
    this.#owners[owner] = undefined;
    this.#freeOwners.push(owner);
  }

  after(owner: number, token: number, microseconds: number): void {
    this.#timers.push({ due: (this.addon.clockUs() + microseconds) | 0, owner, token });
    this.#timers.sort((a, b) => (b.due - a.due) | 0);
  }

  /** Forget what was learnt of a descriptor that is about to be closed. */
  forgetFile(fd: number): void {
    if (fd < this.#withoutNowait.length) this.#withoutNowait[fd] = 0;
  }

  /** Send a signal with the next kernel entry. `index` -1: add 1 to the eventfd `fd`. */
  signal(fd: number, index: number): void {
    if (this.signalCount * 3 === this.signals.length) {
      const grown = new Int32Array(callWords(this.signalCount * 2));
      grown.set(this.call);
      this.call = grown;
      this.signals = grown.subarray(CALL.signals);
    }
    const at = this.signalCount++ * 3;
    this.signals[at] = fd;
    this.signals[at + 1] = index;
    this.signals[at + 2] = 0;
  }

  /** Send the pending signals now: a system call each, and no more. */
  sendSignals(): void {
    if (this.signalCount === 0) return;
    this.addon.sendSignals(this.signals, this.signalCount);
    this.signalsSent();
  }

  /** Called with each signal the kernel refused. */
  onSignalRefused: ((fd: number, index: number, errno: number) => void) | undefined;

  /** Rows that were pushed and are not routed yet. */
  get waiting(): number {
    return this.table.count - this.#routed;
  }

  /** Route the next `count` of the rows that wait. */
  submitSome(count: number): void {
    const first = this.#routed;
    this.#routed = first + count;
    this.#route(first, first + count);
  }

  /** Route all rows pushed since the last call, those pushed by completions meanwhile included. */
  submit(): void {
    while (this.waiting > 0) this.submitSome(this.waiting);
  }

  /**
   * Empty the table; only when no row of it is still to be read by the kernel. Those that are being
   * routed stay: the kernel is entered meanwhile when its queue is full.
   */
  protected clearTable(): void {
    if (this.#routing || this.waiting > 0) return;
    this.table.clear();
    this.#routed = 0;
  }

  /** Deliver the end of the operation in `slot`. */
  protected finish(slot: number, result: number): void {
    const owner = this.#slotOwner[slot]!;
    const token = this.#slotToken[slot]!;
    this.#freeSlots.push(slot);
    this.inFlight--;
    this.#delivered = true;
    this.#owners[owner]!.rowCompleted(token, result);
  }

  /** Deliver an event. */
  protected event(key: number, onEvent: EventHandler): void {
    this.#delivered = true;
    onEvent(key);
  }

  /** After a kernel entry: report refused signals, forget all. */
  protected signalsSent(): void {
    for (let i = 0; i < this.signalCount; i++) {
      const errno = this.signals[i * 3 + 2]!;
      if (errno !== 0) {
        this.onSignalRefused?.(this.signals[i * 3]!, this.signals[i * 3 + 1]!, errno);
      }
    }
    this.signalCount = 0;
  }

  /** The time limit of a wait, shortened to the next timer. */
  #boundedTimeout(timeoutUs: number): number {
    if (this.#timers.length === 0 || timeoutUs === 0) return timeoutUs;
    const left = Math.max(1, (this.#timers.at(-1)!.due - this.addon.clockUs()) | 0);
    return timeoutUs < 0 ? left : Math.min(timeoutUs, left);
  }

  #fireTimers(): void {
    // The clock wraps: only differences mean anything.
    while (
      this.#timers.length > 0 &&
      ((this.#timers.at(-1)!.due - this.addon.clockUs()) | 0) <= 0
    ) {
      const timer = this.#timers.pop()!;
      this.#delivered = true;
      this.#owners[timer.owner]?.rowCompleted(timer.token, 0);
    }
  }

  #route(first: number, end: number): void {
    this.#routing = true;
    let row = first;
    while (row < end) {
      const to = this.#firstElsewhere(row, end);
      if (to > row) this.#run(row, to);
      if (to < end) this.#handOut(to);
      row = to + 1;
    }
    for (row = first; row < end; row++) {
      if (this.table.rows[row * ROW_WORDS + ROW.user] === RAN_HERE) this.#ranHere(row);
    }
    this.#routing = false;
  }

  /** Run the rows from `first` to before `end` on this thread. */
  #run(first: number, end: number): void {
    this.addon.ioRun(this.table.rowBuffer, this.table.vectorBuffer, first, end - first);
  }

  /** The first row that does not run on this thread, or `end`; sets the rwFlags of those before it. */
  #firstElsewhere(first: number, end: number): number {
    const rows = this.table.rows;
    let row = first;
    for (; row < end; row++) {
      const at = row * ROW_WORDS;
      if ((rows[at + ROW.flags]! & IoFlag.MayBlock) !== 0 || this.#allAsync) break;
      const kind = rows[at + ROW.kind]!;
      if (kind === IoKind.Read) {
        if (this.#nowait && !this.#refusesNowait(rows[at + ROW.fd]!)) {
          rows[at + ROW.rwFlags] = RWF_NOWAIT;
        }
      } else if (kind === IoKind.Write && rows[at + ROW.length]! >>> 0 > SYNC_WRITE_LIMIT) break;
    }
    return row;
  }

  #refusesNowait(fd: number): boolean {
    return fd < this.#withoutNowait.length && this.#withoutNowait[fd] !== 0;
  }

  #learnWithoutNowait(fd: number): void {
    if (fd >= this.#withoutNowait.length) {
      const grown = new Uint8Array(2 * fd);
      grown.set(this.#withoutNowait);
      this.#withoutNowait = grown;
    }
    this.#withoutNowait[fd] = 1;
  }

  #handOut(row: number): void {
    const slot = this.#freeSlots.pop() ?? this.#newSlot();
    const rows = this.table.rows;
    const at = row * ROW_WORDS;
    this.#slotOwner[slot] = rows[at + ROW.owner]!;
    this.#slotToken[slot] = rows[at + ROW.token]!;
    rows[at + ROW.user] = slot + 1;
    this.inFlight++;
    this.start(row, slot);
  }

  #ranHere(row: number): void {
    let at = row * ROW_WORDS;
    let rows = this.table.rows;
    let result = rows[at + ROW.result]!;
    if (rows[at + ROW.rwFlags] === RWF_NOWAIT && result !== rows[at + ROW.length]) {
      rows[at + ROW.rwFlags] = 0;
      if (result !== EOPNOTSUPP) {
        // Not (wholly) in the page cache: the kernel's own queue waits for the disk.
        this.#handOut(row);
        return;
      }
      this.#learnWithoutNowait(rows[at + ROW.fd]!);
      this.#run(row, row + 1);
      at = row * ROW_WORDS;
      rows = this.table.rows;
      result = rows[at + ROW.result]!;
    }
    this.#owners[rows[at + ROW.owner]!]!.rowCompleted(rows[at + ROW.token]!, result);
  }

  #newSlot(): number {
    if (this.#slots === this.#slotOwner.length) {
      const owners = new Int32Array(this.#slots * 2);
      owners.set(this.#slotOwner);
      this.#slotOwner = owners;
      const tokens = new Int32Array(this.#slots * 2);
      tokens.set(this.#slotToken);
      this.#slotToken = tokens;
    }
    return this.#slots++;
  }
}
