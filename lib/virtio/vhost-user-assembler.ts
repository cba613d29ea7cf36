import {
  HEADER_BYTES,
  type Header,
  MAX_PAYLOAD,
  parseHeader,
  violation,
} from './vhost-user-messages.ts';

/** A received descriptor; who takes it closes it. */
export interface Closable {
  close(): void;
}

/** A whole message. */
export interface Message<Fd extends Closable> {
  readonly header: Header;
  readonly payload: Uint8Array;
  /** What came with it. Take one out to keep it; `closeFds` closes the rest. */
  readonly fds: Fd[];
}

export function closeFds(fds: Closable[]): void {
  for (const fd of fds.splice(0)) fd.close();
}

/**
 * Puts messages together from what a stream socket gives. Header and payload are read exactly, never
 * beyond, so that descriptors, which travel with the bytes they were sent with, belong to the message
 * being read.
 */
export class MessageAssembler<Fd extends Closable> {
  readonly #buffer = new Uint8Array(HEADER_BYTES + MAX_PAYLOAD);
  readonly #maxFds: number;
  #filled = 0;
  #wanted = HEADER_BYTES;
  #header: Header | undefined;
  #fds: Fd[] = [];

  constructor(maxFds: number) {
    this.#maxFds = maxFds;
  }

  /** Where the next bytes belong, no more of them than this. */
  get target(): Uint8Array {
    return this.#buffer.subarray(this.#filled, this.#wanted);
  }

  /** True when part of a message has come. */
  get partial(): boolean {
    return this.#filled > 0;
  }

  /** The request being read, where its header is known. */
  get request(): number | undefined {
    return this.#header?.request;
  }

  /**
   * `bytes` were read into `target`, `fds` came with them. Returns the message they complete, if
   * they do. Throws a VhostUserError; then `discard`.
   */
  accept(bytes: number, fds: readonly Fd[]): Message<Fd> | undefined {
    this.#fds.push(...fds);
    this.#filled += bytes;
    if (this.#fds.length > this.#maxFds) {
      throw violation(this.request, `more than ${this.#maxFds} file descriptors`);
    }
    if (this.#filled < this.#wanted) return undefined;
    if (this.#header === undefined) {
      this.#header = parseHeader(this.#buffer);
      this.#wanted += this.#header.size;
      if (this.#filled < this.#wanted) return undefined;
    }
    const message = {
      header: this.#header,
      payload: this.#buffer.slice(HEADER_BYTES, this.#filled),
      fds: this.#fds,
    };
    this.#fds = [];
    this.#header = undefined;
    this.#filled = 0;
    this.#wanted = HEADER_BYTES;
    return message;
  }

  /** Close what came with a message that will never be whole. */
  discard(): void {
    closeFds(this.#fds);
  }
}
