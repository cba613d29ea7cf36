const STOP = ['SIGTERM', 'SIGINT'] as const;

/** SIGTERM and SIGINT as a queue: each asks once, whenever it is looked at. */
export class StopSignals {
  readonly #abort = new AbortController();
  #asked = 0;
  #wake: (() => void) | undefined;

  constructor() {
    for (const name of STOP) process.on(name, this.#received);
  }

  /** Aborted by the first one. */
  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  /** Resolves at the next one, at once if one came that was not yet taken. */
  async next(): Promise<undefined> {
    if (this.#asked === 0) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    this.#asked--;
  }

  /** Back to the default: the next one kills. */
  close(): void {
    for (const name of STOP) process.off(name, this.#received);
  }

  readonly #received = (): void => {
    this.#asked++;
    this.#abort.abort(
      new Error('stopped by a signal before all was ready (nothing is left behind)'),
    );
    this.#wake?.();
  };
}
