import type { Addon, Extent } from '../native/index.ts';
import type { FileCopies } from './file-store.ts';
import { knowledgeBytes, PageKnowledge } from './page-knowledge.ts';
import { Heat, WriteHeat } from './write-heat.ts';

/** What is known is known by pages of this size, whatever the machine's are. */
const PAGE_BYTES = 4096;

/** Longer transfers are the kernel's: there the call is what costs least. */
const MOST_BYTES = 32 * PAGE_BYTES;

/** So many microseconds, as a power of two (8.4 s), are one time: pages are known for one to two. */
const TIME_SHIFT = 23;
/** Times are numbers from 1 on that come round again. */
const TIMES = 255;
/** The part of the era that counts; small enough to be added. */
const ERAS = 0xffff;
/** The kernel writes back what is older than 30 s, looking every five: four times, as a power of two. */
const WRITE_BACK_SHIFT = 2;

/** So many transfers are decided between two looks at the clock; one copy of them is watched. */
const LOOK_EVERY = 32;
/** The one that is watched, counted down from there. */
const WATCHED = 1;

/** No copies for so long after one had to wait for the disk, and twice as long if it comes again soon. */
const PAUSE_US = 500_000;
const LONGEST_PAUSE_US = 128_000_000;

/** Words before what is known: the era of the pages, the era of the writes. */
const HEADER_BYTES = 8;

/** Memory, all zeroes, for what the stores of an image know; undefined for one that is too large. */
export function createKnowledge(capacity: number): SharedArrayBuffer | undefined {
  const bytes = knowledgeBytes(Math.ceil(capacity / PAGE_BYTES));
  return bytes === undefined ? undefined : new SharedArrayBuffer(HEADER_BYTES + bytes);
}

/**
 * Whether a transfer can be a copy; a watched one is counted if it waits. Later: not now, but perhaps once
 * it is learnt that a call could do it.
 */
export const Copy = { No: 0, Yes: 1, Watched: 2, Later: 3 } as const;
export type Copy = (typeof Copy)[keyof typeof Copy];

/** Decides which transfers are copies, and is told what it needs for that. */
export interface CopyPolicy {
  /** How a read (or write) of the extent can be a copy. */
  canCopy(extent: Extent, writes: boolean): Copy;
  /** A system call, of a transfer that can be a copy later, read or wrote so much. */
  learn(offset: number, length: number): void;
  /** The pages are no more, or become others. */
  forget(offset: number, length: number): void;
  /** The file was synced. */
  writtenBack(): void;
}

/** Make all that is known older: by one time it is about to be forgotten, by two it is. */
export function ageKnowledge(knowledge: SharedArrayBuffer, times: 1 | 2): void {
  Atomics.add(new Int32Array(knowledge, 0, 1), 0, times);
}

/**
 * Which pages of a file can be copied from and to its mapping without a wait: those that a system call
 * read or wrote whole in the last seconds are in the page cache. Copying one costs a fraction of the call.
 *
 * The kernel may take a page away all the same, and then a copy waits for the disk. Some are watched for
 * that: then all is forgotten, and nothing copied for a while, longer each time. A machine so short of memory
 * reads its disk anyway, and had better do it through the kernel's own queue.
 */
export class CachedPages implements CopyPolicy {
  readonly #pages: PageKnowledge;
  /** Undefined: a write is as good as any other, since pages stay dirty. */
  readonly #heat: WriteHeat | undefined;
  /** One word, added to the time: what is known of before it was raised is of another time. */
  readonly #era: Int32Array;
  readonly #addon: Pick<Addon, 'clockUs' | 'slowCopies'>;
  /** Transfers until the next look. */
  #left = 1;
  #time = 0;
  #slow: number;
  /** The longest transfer that is copied. */
  #most = MOST_BYTES;
  /** Since `#since`, for `#pause` µs: copy nothing. */
  #since: number;
  #pause = 0;

  /** What is known is shared by the threads that serve an image. */
  constructor(
    { knowledge, writtenBack }: Pick<FileCopies, 'knowledge' | 'writtenBack'>,
    capacity: number,
    addon: Pick<Addon, 'clockUs' | 'slowCopies'>,
  ) {
    this.#era = new Int32Array(knowledge, 0, 1);
    this.#heat = writtenBack ? new WriteHeat(capacity, new Int32Array(knowledge, 4, 1)) : undefined;
    this.#pages = new PageKnowledge(knowledge, HEADER_BYTES, Math.ceil(capacity / PAGE_BYTES));
    this.#addon = addon;
    this.#slow = addon.slowCopies();
    this.#since = addon.clockUs();
  }

  canCopy({ offset, length }: Extent, writes: boolean): Copy {
    const left = --this.#left;
    if (left === 0) this.#look();
    if (writes && this.#heat !== undefined) {
      const heat = this.#heat.count(offset);
      if (heat !== Heat.Hot) return heat === Heat.Cold ? Copy.No : Copy.Later;
    }
    if (length > this.#most) return this.#most === 0 ? Copy.No : Copy.Later;
    // Pages have 32-bit numbers; as integers they are quicker.
    const last = ((offset + length - 1) / PAGE_BYTES) >>> 0;
    for (let page = (offset / PAGE_BYTES) >>> 0; page <= last; page++) {
      if (!this.#pages.has(page)) return Copy.Later;
    }
    return left === WATCHED ? Copy.Watched : Copy.Yes;
  }

  learn(offset: number, length: number): void {
    const first = Math.ceil(offset / PAGE_BYTES);
    this.#pages.add(first, Math.floor((offset + length) / PAGE_BYTES));
  }

  forget(offset: number, length: number): void {
    const first = Math.floor(offset / PAGE_BYTES);
    this.#pages.remove(first, Math.ceil((offset + length) / PAGE_BYTES));
  }

  writtenBack(): void {
    this.#heat?.writtenBack();
  }

  #look(): void {
    this.#left = LOOK_EVERY;
    const clock = this.#addon.clockUs();
    const slow = this.#addon.slowCopies();
    // The clock wraps: negative is long ago.
    const since = (clock - this.#since) | 0;
    if (slow !== this.#slow) {
      this.#slow = slow;
      Atomics.add(this.#era, 0, 2);
      const soon = since >= 0 && since < 4 * this.#pause;
      this.#pause = soon ? Math.min(2 * this.#pause, LONGEST_PAUSE_US) : PAUSE_US;
      this.#most = 0;
      this.#since = clock;
    } else if (since < 0 || since > this.#pause) {
      this.#most = MOST_BYTES;
    }
    const time = (clock >>> TIME_SHIFT) + (this.#era[0]! & ERAS);
    if (time !== this.#time) this.#setTime(time);
  }

  #setTime(time: number): void {
    if (time >>> WRITE_BACK_SHIFT !== this.#time >>> WRITE_BACK_SHIFT) this.#heat?.writtenBack();
    this.#time = time;
    this.#pages.setTime((time % TIMES) + 1, ((time + TIMES - 1) % TIMES) + 1);
  }
}
