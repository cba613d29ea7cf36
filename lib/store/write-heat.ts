/** Bytes of a chunk, as a power of two: 2 MiB. */
const CHUNK_SHIFT = 21;
/** Writes, since the last write-back, from which on a chunk is hot: one for each of its pages. */
const HOT = 512;
/** From here on it may become so: what is cached of it is worth to be learnt. */
const WARM = 256;
/** A chunk's word: the era in which its writes were counted, above their number. */
const COUNT_BITS = 12;
const COUNT_MASK = (1 << COUNT_BITS) - 1;
const ERA_MASK = 2 ** (32 - COUNT_BITS) - 1;

/** How often a chunk is written. */
export const Heat = { Cold: 0, Warm: 1, Hot: 2 } as const;
export type Heat = (typeof Heat)[keyof typeof Heat];

/**
 * Which parts of a file are written so often that storing through the mapping pays. The first store to a
 * page after its write-back is a fault, twice as dear as a system call; all others cost a third of one.
 */
export class WriteHeat {
  readonly #chunks: Uint32Array;
  readonly #era: Int32Array;

  /** `era`: one word that all who write the file share; it goes up with each write-back. */
  constructor(capacity: number, era: Int32Array) {
    this.#chunks = new Uint32Array(Math.ceil(capacity / 2 ** CHUNK_SHIFT));
    this.#era = era;
  }

  /** All pages are clean again, or as good as. */
  writtenBack(): void {
    Atomics.add(this.#era, 0, 1);
  }

  /** Count a write that begins at `offset`. */
  count(offset: number): Heat {
    const chunk = Math.floor(offset / 2 ** CHUNK_SHIFT);
    const era = this.#era[0]! & ERA_MASK;
    const word = this.#chunks[chunk]!;
    if (word >>> COUNT_BITS !== era) {
      this.#chunks[chunk] = (era << COUNT_BITS) + 1;
      return Heat.Cold;
    }
    const writes = word & COUNT_MASK;
    if (writes >= HOT) return Heat.Hot;
    this.#chunks[chunk] = word + 1;
    return writes < WARM ? Heat.Cold : Heat.Warm;
  }
}
