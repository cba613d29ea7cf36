import { native } from '../native/index.ts';
import { IoFlag, IoKind, type IoPort, type Memory } from '../native/io-table.ts';
import { Errno } from './errno.ts';
import { MAX_TOKENS } from './store.ts';

const ZERO_BYTES = 64 * 1024;
/** One write of a fill: long enough to be cheap, short enough not to hold up the disk's other work. */
const CHUNK_BYTES = 16 * 1024 * 1024;

let zeroes: Memory | undefined;

/** Pages that nobody ever writes: the kernel's one zero page stands behind all of them. */
function zeroMemory(): Memory {
  if (zeroes === undefined) {
    const mapping = native.allocate(ZERO_BYTES);
    zeroes = { u8: new Uint8Array(mapping.buffer), address: mapping.address };
  }
  return zeroes;
}

/** Writes zeroes where the file system has no call for it, one chunk at a time for each token. */
export class ZeroFill {
  readonly #port: IoPort;
  readonly #owner: number;
  readonly #fd: number;
  /** Per token: where the chunk in flight begins, and where the range ends. */
  readonly #at = new Float64Array(MAX_TOKENS);
  readonly #end = new Float64Array(MAX_TOKENS);

  constructor(port: IoPort, owner: number, fd: number) {
    this.#port = port;
    this.#owner = owner;
    this.#fd = fd;
  }

  begin(token: number, offset: number, length: number): void {
    this.#at[token] = offset;
    this.#end[token] = offset + length;
    this.#writeChunk(token);
  }

  /** A chunk ended. The fill's own result (0 or -errno), or undefined while it goes on. */
  advance(token: number, result: number): number | undefined {
    if (result < 0) return result;
    const chunk = this.#chunkLength(token);
    if (result !== chunk) return -Errno.EIO;
    this.#at[token]! += chunk;
    if (this.#at[token] === this.#end[token]) return 0;
    this.#writeChunk(token);
    return undefined;
  }

  #chunkLength(token: number): number {
    return Math.min(this.#end[token]! - this.#at[token]!, CHUNK_BYTES);
  }

  #writeChunk(token: number): void {
    const length = this.#chunkLength(token);
    const memory = zeroMemory();
    const { table } = this.#port;
    table.push(
      this.#owner,
      token,
      IoKind.Write,
      this.#fd,
      { offset: this.#at[token]!, length },
      0,
      IoFlag.MayBlock,
    );
    for (let left = length; left > 0; left -= ZERO_BYTES) {
      table.addVector(memory, 0, Math.min(left, ZERO_BYTES));
    }
  }
}
