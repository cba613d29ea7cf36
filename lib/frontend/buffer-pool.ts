/**
 * Gives out and takes back runs of an address range: first fit in a list of free runs, neighbours
 * joined. Lengths are rounded up to `GRAIN`, which is also the alignment.
 */
const GRAIN = 512;

interface Run {
  start: number;
  length: number;
}

export class BufferPool {
  readonly size: number;
  readonly #free: Run[];

  constructor(start: number, length: number) {
    this.size = length - (length % GRAIN);
    this.#free = [{ start, length: this.size }];
  }

  /** The start of a run of at least `length` bytes, or -1 when none is free now. */
  take(length: number): number {
    const rounded = roundUp(length);
    const index = this.#free.findIndex((run) => run.length >= rounded);
    const run = this.#free[index];
    if (run === undefined) return -1;
    const { start } = run;
    run.start += rounded;
    run.length -= rounded;
    if (run.length === 0) this.#free.splice(index, 1);
    return start;
  }

  /** Give back what `take(length)` returned. */
  give(start: number, length: number): void {
    const rounded = roundUp(length);
    const found = this.#free.findIndex((run) => run.start > start);
    const index = found < 0 ? this.#free.length : found;
    const before = this.#free[index - 1];
    const after = this.#free[index];
    const joinsAfter = after !== undefined && start + rounded === after.start;
    if (before !== undefined && before.start + before.length === start) {
      before.length += rounded + (joinsAfter ? after.length : 0);
      if (joinsAfter) this.#free.splice(index, 1);
    } else if (joinsAfter) {
      after.start = start;
      after.length += rounded;
    } else {
      this.#free.splice(index, 0, { start, length: rounded });
    }
  }
}

/** How much of a pool a buffer of `length` bytes takes. */
export function roundUp(length: number): number {
  return Math.max(GRAIN, Math.ceil(length / GRAIN) * GRAIN);
}
