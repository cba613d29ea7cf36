import type { Addon, IoUring, Mapping } from '../native/index.ts';
import { CALL, IoKind, ROW, ROW_WORDS, VECTOR_WORDS } from '../native/index.ts';
import type { EventHandler, IoPolicy } from './io-engine.ts';
import { EAGAIN, IoEngine } from './io-engine.ts';

// linux/io_uring.h
const IORING_OP = {
  READV: 1,
  WRITEV: 2,
  FSYNC: 3,
  POLL_ADD: 6,
  POLL_REMOVE: 7,
  FALLOCATE: 17,
  READ: 22,
  WRITE: 23,
};
const IORING_SETUP_CLAMP = 1 << 4;
const IORING_SETUP_COOP_TASKRUN = 1 << 8;
const IORING_SETUP_TASKRUN_FLAG = 1 << 9;
const IORING_SETUP_SINGLE_ISSUER = 1 << 12;
const IORING_SETUP_DEFER_TASKRUN = 1 << 13;
const IORING_FEAT_SINGLE_MMAP = 1 << 0;
const IORING_FEAT_NODROP = 1 << 1;
const IORING_FEAT_SUBMIT_STABLE = 1 << 2;
const IORING_FEAT_EXT_ARG = 1 << 8;
const IORING_SQ_CQ_OVERFLOW = 1 << 1;
const IORING_SQ_TASKRUN = 1 << 2;
const IORING_OFF_SQ_RING = 0;
const IORING_OFF_SQES = 0x10000000;
const IORING_ENTER_GETEVENTS = 1;
const IORING_FSYNC_DATASYNC = 1;
const IORING_POLL_ADD_MULTI = 1;
const IORING_CQE_F_MORE = 2;
const POLLIN = 1;

const SQE_WORDS = 16;
const CQE_WORDS = 4;

/** The upper word of user_data says what the lower one means. */
const TAG = { Operation: 1, Poll: 2, Ignore: 3 } as const;

const TWO_32 = 2 ** 32;
const ETIME = -62;
const EINTR = -4;
const EBUSY = -16;

/** The I/O engine on io_uring: one system call submits, signals and waits. */
export class UringEngine extends IoEngine {
  readonly name = 'io_uring';
  readonly #ring: IoUring;
  readonly #ringMemory: Mapping;
  readonly #sqeMemory: Mapping;
  readonly #ringWords: Uint32Array;
  readonly #sqes: Int32Array;
  readonly #sqMask: number;
  readonly #cqMask: number;
  readonly #sqTailAt: number;
  readonly #cqHeadAt: number;
  readonly #cqTailAt: number;
  readonly #cqesAt: number;
  #sqTail: number;
  #unsubmitted = 0;
  readonly #sqFlagsAt: number;
  /** Watched descriptors under numbers of their own: a late event of an old watch finds nothing. */
  readonly #polls = new Map<number, { fd: number; key: number }>();
  #nextPoll = 1;
  #onEvent: EventHandler = () => {};

  /** Throws the kernel's error where io_uring is not allowed or too old. */
  constructor(addon: Addon, policy: IoPolicy, entries = 256) {
    super(addon, policy);
    this.#ring = setup(addon, entries);
    const need =
      IORING_FEAT_SINGLE_MMAP |
      IORING_FEAT_NODROP |
      IORING_FEAT_SUBMIT_STABLE |
      IORING_FEAT_EXT_ARG;
    if ((this.#ring.features & need) !== need) {
      this.#ring.ring.close();
      throw new Error(`io_uring: features 0x${this.#ring.features.toString(16)}: kernel too old`);
    }
    const { sqOff, cqOff, sqEntries, cqEntries } = this.#ring;
    const [, sqTail, sqMask, , sqFlags, , sqArray] = sqOff as Seven;
    const [cqHead, cqTail, cqMask, , , cqes] = cqOff as Seven;
    const fd = this.#ring.ring.fd;
    const bytes = Math.max(sqArray + sqEntries * 4, cqes + cqEntries * 16);
    this.#ringMemory = addon.mmap(fd, bytes, IORING_OFF_SQ_RING, true);
    this.#sqeMemory = addon.mmap(fd, sqEntries * 64, IORING_OFF_SQES, true);
    this.#ringWords = new Uint32Array(this.#ringMemory.buffer, 0, bytes >>> 2);
    this.#sqes = new Int32Array(this.#sqeMemory.buffer);
    this.#sqMask = this.#ringWords[sqMask / 4]!;
    this.#cqMask = this.#ringWords[cqMask / 4]!;
    this.#sqTailAt = sqTail / 4;
    this.#sqFlagsAt = sqFlags / 4;
    this.#cqHeadAt = cqHead / 4;
    this.#cqTailAt = cqTail / 4;
    this.#cqesAt = cqes / 4;
    this.#sqTail = this.#ringWords[this.#sqTailAt]!;
    // Entries are used in order, so the indirection array is the identity for ever.
    for (let i = 0; i < sqEntries; i++) this.#ringWords[sqArray / 4 + i] = i;
  }

  watch(fd: number, key: number): void {
    const poll = this.#nextPoll++;
    this.#polls.set(poll, { fd, key });
    this.#armPoll(fd, poll);
  }

  unwatch(key: number): void {
    for (const [poll, watched] of this.#polls) {
      if (watched.key !== key) continue;
      this.#polls.delete(poll);
      const at = this.#nextSqe(IORING_OP.POLL_REMOVE, -1, 0, TAG.Ignore);
      this.#sqes[at + 4] = poll;
      this.#sqes[at + 5] = TAG.Poll;
    }
  }

  ready(): boolean {
    const words = this.#ringWords;
    // A plain load: only a hint. The kernel looks itself before it sleeps, and `#reap` loads anew.
    if (words[this.#cqTailAt] !== words[this.#cqHeadAt]) return true;
    // Completions wait in the kernel until it is entered (DEFER_TASKRUN, a full queue). TASKRUN is set
    // after the work was added: if that was done in between, the flag stays until there is more.
    return (words[this.#sqFlagsAt]! & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) !== 0;
  }

  close(): void {
    this.#ringMemory.unmap();
    this.#sqeMemory.unmap();
    this.#ring.ring.close();
    this.table.close();
  }

  protected enter(timeoutUs: number, onEvent: EventHandler): void {
    this.#onEvent = onEvent;
    // Not what `ready` says: its flags can be set with nothing behind them, and the kernel waits for
    // no completion that is there already.
    this.#enterKernel(timeoutUs === 0 ? 0 : 1, timeoutUs);
    this.#reap();
  }

  protected start(row: number, slot: number): void {
    const rows = this.table.rows;
    const r = row * ROW_WORDS;
    const kind = rows[r + ROW.kind]!;
    const fd = rows[r + ROW.fd]!;
    if (kind === IoKind.Sync) {
      const at = this.#nextSqe(IORING_OP.FSYNC, fd, slot, TAG.Operation);
      this.#sqes[at + 7] = IORING_FSYNC_DATASYNC;
      return;
    }
    if (kind === IoKind.Allocate) {
      const at = this.#nextSqe(IORING_OP.FALLOCATE, fd, slot, TAG.Operation);
      const sqes = this.#sqes;
      sqes[at + 2] = rows[r + ROW.offset]!;
      sqes[at + 3] = rows[r + ROW.offset + 1]!;
      sqes[at + 4] = rows[r + ROW.length]!;
      sqes[at + 5] = rows[r + ROW.length + 1]!;
      sqes[at + 6] = rows[r + ROW.mode]!;
      return;
    }
    const vectors = rows[r + ROW.vectorCount]!;
    const first = rows[r + ROW.firstVector]!;
    const single = vectors === 1;
    const opcode =
      kind === IoKind.Read
        ? single
          ? IORING_OP.READ
          : IORING_OP.READV
        : single
          ? IORING_OP.WRITE
          : IORING_OP.WRITEV;
    const at = this.#nextSqe(opcode, fd, slot, TAG.Operation);
    const sqes = this.#sqes;
    sqes[at + 2] = rows[r + ROW.offset]!;
    sqes[at + 3] = rows[r + ROW.offset + 1]!;
    if (single) {
      const v = first * VECTOR_WORDS;
      const table = this.table.vectors;
      sqes[at + 4] = table[v]!;
      sqes[at + 5] = table[v + 1]!;
      sqes[at + 6] = table[v + 2]!;
    } else {
      const address = this.table.vectorAddress + first * VECTOR_WORDS * 4;
      sqes[at + 4] = address;
      sqes[at + 5] = address / TWO_32;
      sqes[at + 6] = vectors;
    }
  }

  #armPoll(fd: number, key: number): void {
    const at = this.#nextSqe(IORING_OP.POLL_ADD, fd, key, TAG.Poll);
    this.#sqes[at + 6] = IORING_POLL_ADD_MULTI;
    this.#sqes[at + 7] = POLLIN;
  }

  /** A zeroed entry with its first words set; its index in words. */
  #nextSqe(opcode: number, fd: number, user: number, tag: number): number {
    while (this.#unsubmitted > this.#sqMask) this.#enterKernel(0, 0);
    const at = (this.#sqTail & this.#sqMask) * SQE_WORDS;
    const sqes = this.#sqes;
    sqes[at] = opcode;
    sqes[at + 1] = fd;
    for (let i = 2; i < SQE_WORDS; i++) sqes[at + i] = 0;
    sqes[at + 8] = user;
    sqes[at + 9] = tag;
    this.#sqTail = (this.#sqTail + 1) >>> 0;
    this.#unsubmitted++;
    return at;
  }

  #enterKernel(minComplete: number, timeoutUs: number): void {
    if (minComplete === 0 && this.#unsubmitted === 0 && !this.ready()) {
      this.sendSignals();
      this.clearTable();
      return;
    }
    // Published behind the entries; where none are new the kernel has seen it.
    if (this.#unsubmitted > 0) Atomics.store(this.#ringWords, this.#sqTailAt, this.#sqTail);
    const call = this.call;
    call[CALL.ring] = this.#ring.ring.fd;
    call[CALL.toSubmit] = this.#unsubmitted;
    call[CALL.minComplete] = minComplete;
    call[CALL.flags] = IORING_ENTER_GETEVENTS;
    call[CALL.timeoutUs] = timeoutUs;
    call[CALL.signalCount] = this.signalCount;
    this.addon.ioUringEnter(call.buffer);
    const done = call[CALL.result]!;
    this.signalsSent();
    if (done >= 0) {
      this.#unsubmitted -= done;
      if (this.#unsubmitted === 0) this.clearTable();
      return;
    }
    if (done === EAGAIN || done === EBUSY) this.#reap();
    else if (done !== EINTR && done !== ETIME) {
      throw new Error(`io_uring_enter failed: errno ${-done}`);
    }
  }

  #reap(): void {
    const words = this.#ringWords;
    let head = words[this.#cqHeadAt]!;
    // The plain load says whether to look; what stands behind the tail is read after the atomic one.
    while (head !== words[this.#cqTailAt] && head !== Atomics.load(words, this.#cqTailAt)) {
      const at = this.#cqesAt + (head & this.#cqMask) * CQE_WORDS;
      const user = words[at]!;
      const tag = words[at + 1]!;
      const result = words[at + 2]! | 0;
      const flags = words[at + 3]!;
      head = (head + 1) >>> 0;
      // Given back before delivery: a callback may enter the kernel, which may need the room.
      Atomics.store(words, this.#cqHeadAt, head);
      if (tag === TAG.Operation) this.finish(user, result);
      else if (tag === TAG.Poll) this.#polled(user, result, flags);
      head = words[this.#cqHeadAt]!;
    }
  }

  #polled(poll: number, result: number, flags: number): void {
    const watched = this.#polls.get(poll);
    if (watched === undefined) return;
    if (result < 0) {
      this.#polls.delete(poll);
      return;
    }
    if ((flags & IORING_CQE_F_MORE) === 0) this.#armPoll(watched.fd, poll);
    this.event(watched.key, this.#onEvent);
  }
}

type Seven = [number, number, number, number, number, number, number];

/** The best set-up flags this kernel takes: newer ones make a completion cheaper, none is needed. */
function setup(addon: Addon, entries: number): IoUring {
  const tries = [
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
  ];
  for (const flags of tries) {
    try {
      return addon.ioUringSetup(entries, flags | IORING_SETUP_CLAMP);
    } catch (error) {
      if ((error as { code?: string }).code !== 'EINVAL') throw error;
    }
  }
  return addon.ioUringSetup(entries, IORING_SETUP_CLAMP);
}
