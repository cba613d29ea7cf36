/** Pages of a chunk: 2 MiB of 4 KiB each. */
const CHUNK_SHIFT = 9;
const CHUNK_PAGES = 1 << CHUNK_SHIFT;
const CHUNK_WORDS = CHUNK_PAGES / 32;

/** Pages have 32-bit numbers. */
const MOST_PAGES = 2 ** 32;

/** Stands for a time long ago. */
const NEVER = 0;

/** Bytes for so many pages; undefined where there are too many. */
export function knowledgeBytes(pages: number): number | undefined {
  if (pages > MOST_PAGES) return undefined;
  return Math.ceil(pages / CHUNK_PAGES) * (CHUNK_PAGES / 8 + 4 + 1);
}

/**
 * A set of pages that are forgotten, by chunks, when nobody asks for any of a chunk for two times. Once
 * all pages of a chunk are known only the chunk is looked at: the few lines of memory that takes
 * stay in the processor's cache, those of a bit for each page don't.
 *
 * Threads may share one. What they do at the same time can lose a page, or find a chunk full
 * that lacks one; neither does harm to whoever can be wrong about a page.
 */
export class PageKnowledge {
  readonly #bits: Int32Array;
  readonly #counts: Int32Array;
  /** When a chunk was last asked for. */
  readonly #times: Uint8Array;
  #now = 1;
  #before = 1;

  /** `memory`: `knowledgeBytes(pages)` zeroes at `offset`, a multiple of 4. */
  constructor(memory: SharedArrayBuffer, offset: number, pages: number) {
    const chunks = Math.ceil(pages / CHUNK_PAGES);
    this.#bits = new Int32Array(memory, offset, chunks * CHUNK_WORDS);
    this.#counts = new Int32Array(memory, offset + this.#bits.byteLength, chunks);
    const times = this.#counts.byteOffset + this.#counts.byteLength;
    this.#times = new Uint8Array(memory, times, chunks);
  }

  /** What time it is, and was before: from 1 to 255. */
  setTime(now: number, before: number): void {
    this.#now = now;
    this.#before = before;
  }

  /** Whether a page is known. */
  has(page: number): boolean {
    const chunk = page >>> CHUNK_SHIFT;
    const times = this.#times;
    if (times[chunk] !== this.#now) {
      if (times[chunk] !== this.#before) return false;
      times[chunk] = this.#now;
    }
    if (this.#counts[chunk] === CHUNK_PAGES) return true;
    return (this.#bits[page >>> 5]! & (1 << (page & 31))) !== 0;
  }

  add(first: number, end: number): void {
    for (let page = first; page < end; page++) {
      const chunk = page >>> CHUNK_SHIFT;
      const time = this.#times[chunk];
      if (time !== this.#now && time !== this.#before) {
        this.#bits.fill(0, chunk * CHUNK_WORDS, (chunk + 1) * CHUNK_WORDS);
        this.#counts[chunk] = 0;
      }
      this.#times[chunk] = this.#now;
      const bit = 1 << (page & 31);
      const word = this.#bits[page >>> 5]!;
      if ((word & bit) !== 0) continue;
      this.#bits[page >>> 5] = word | bit;
      this.#counts[chunk] = this.#counts[chunk]! + 1;
    }
  }

  /** With them goes what else is in their chunks. */
  remove(first: number, end: number): void {
    const chunks = Math.ceil(end / CHUNK_PAGES);
    this.#times.fill(NEVER, Math.floor(first / CHUNK_PAGES), chunks);
  }
}
