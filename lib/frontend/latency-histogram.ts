/** Buckets for each doubling: a quantile is exact to 1/32. */
const STEPS = 32;
const OCTAVES = 32;

/** Counts durations in buckets that grow with them; from 1/16 µs to over an hour. */
export class LatencyHistogram {
  readonly #counts = new Float64Array(STEPS * OCTAVES);
  #count = 0;
  /** In an array: a field would be a new object each time it grows. */
  readonly #max = new Float64Array(1);

  add(microseconds: number): void {
    const at = Math.floor(Math.log2(Math.max(microseconds, 1 / 16) * 16) * STEPS);
    const index = Math.min(at, this.#counts.length - 1);
    this.#counts[index] = this.#counts[index]! + 1;
    this.#count++;
    if (microseconds > this.#max[0]!) this.#max[0] = microseconds;
  }

  get count(): number {
    return this.#count;
  }

  /** Microseconds. */
  get max(): number {
    return this.#max[0]!;
  }

  /** The duration in µs that the fraction `q` of all does not exceed; 0 when there are none. */
  quantile(q: number): number {
    let left = q * this.#count;
    for (let i = 0; i < this.#counts.length; i++) {
      left -= this.#counts[i]!;
      if (left <= 0 && this.#count > 0) return Math.min(2 ** ((i + 1) / STEPS) / 16, this.max);
    }
    return this.#max[0]!;
  }

  /** Add another's counts to these. */
  merge(other: LatencyHistogram): void {
    other.#counts.forEach((count, i) => {
      this.#counts[i] = this.#counts[i]! + count;
    });
    this.#count += other.#count;
    this.#max[0] = Math.max(this.max, other.max);
  }
}
