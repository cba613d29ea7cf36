import { performance } from 'node:perf_hooks';

const START_US = 8;

/**
 * Adaptive polling: spins after recent work, as long as it has lately paid. The time from the start
 * of a spin to the next work is the measure: beyond the maximum the spin is halved, beyond the
 * current length it is doubled, else kept.
 */
export class Spin {
  readonly enabled: boolean;
  readonly #maximum: number;
  #current = 0;
  #idleSince = 0;
  #recent = false;

  /** `maximumUs` 0: never spin. */
  constructor(maximumUs: number) {
    this.enabled = maximumUs > 0;
    this.#maximum = maximumUs / 1000;
    this.#current = this.#maximum;
  }

  /** Requests were taken. */
  worked(): void {
    this.#recent = true;
  }

  /** Spin until `condition` holds (true) or the time is up (false). */
  until(condition: () => boolean): boolean {
    if (!this.#recent) return false;
    this.#recent = false;
    const start = performance.now();
    this.#idleSince = start;
    const end = start + this.#current;
    do {
      if (condition()) return true;
    } while (performance.now() < end);
    return false;
  }

  /** A sleep has ended: learn from how long the thread was idle. */
  woke(): void {
    if (!this.enabled || this.#idleSince === 0) return;
    const idle = performance.now() - this.#idleSince;
    this.#idleSince = 0;
    if (idle > this.#maximum) this.#current /= 2;
    else if (idle > this.#current) {
      this.#current = Math.min(this.#maximum, Math.max(this.#current * 2, START_US / 1000));
    }
    if (this.#current < 0.001) this.#current = 0;
  }
}
