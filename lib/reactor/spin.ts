import type { Addon } from '../native/index.ts';

const START_US = 8;

/** A sleep this long is longer than any spin; the clock tells no longer times apart. */
const LONG_US = 2 ** 30;

/**
 * Adaptive polling: spins after recent work, as long as it has lately paid. The time from the start
 * of a spin to the next work is the measure: beyond the maximum the spin is halved, beyond the
 * current length it is doubled, else kept. Allocates nothing: it may run once a request.
 */
export class Spin {
  readonly enabled: boolean;
  readonly #addon: Pick<Addon, 'clockUs'>;
  readonly #maximum: number;
  #current: number;
  #idleSince = 0;
  #idle = false;
  #recent = false;

  /** `maximumUs` 0: never spin. */
  constructor(addon: Pick<Addon, 'clockUs'>, maximumUs: number) {
    this.#addon = addon;
    this.enabled = maximumUs > 0;
    this.#maximum = Math.min(maximumUs, LONG_US);
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
    const start = this.#addon.clockUs();
    this.#idleSince = start;
    this.#idle = true;
    const current = this.#current;
    do {
      if (condition()) {
        this.#idle = false;
        return true;
      }
    } while (((this.#addon.clockUs() - start) | 0) < current);
    return false;
  }

  /** A sleep has ended: learn from how long the thread was idle. */
  woke(): void {
    if (!this.#idle) return;
    this.#idle = false;
    const idle = (this.#addon.clockUs() - this.#idleSince) | 0;
    // Negative: so long that the clock has wrapped.
    if (idle > this.#maximum || idle < 0) this.#current >>= 1;
    else if (idle > this.#current) {
      this.#current = Math.min(this.#maximum, Math.max(this.#current * 2, START_US));
    }
  }
}
