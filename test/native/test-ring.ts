import { CALL, callWords, type IoUring, type Mapping, native } from '../../lib/native/index.ts';

/** The least that drives an io_uring: the rings mapped, entries pushed and reaped. */
export class TestRing {
  // linux/io_uring.h
  static readonly NOP = 0;
  static readonly READV = 1;
  static readonly POLL_ADD = 6;
  static readonly GETEVENTS = 1;

  readonly #ring: IoUring;
  readonly #rings: Mapping;
  readonly #sqes: Mapping;
  readonly #words: Uint32Array;

  constructor(entries: number) {
    this.#ring = native.ioUringSetup(entries, 0);
    const { ring, sqEntries, cqEntries, sqOff, cqOff } = this.#ring;
    const bytes = Math.max(sqOff[6]! + sqEntries * 4, cqOff[5]! + cqEntries * 16);
    this.#rings = native.mmap(ring.fd, bytes, 0, true);
    this.#sqes = native.mmap(ring.fd, sqEntries * 64, 0x10000000, true);
    this.#words = new Uint32Array(this.#rings.buffer, 0, bytes >> 2);
  }

  get fd(): number {
    return this.#ring.ring.fd;
  }

  push(
    opcode: number,
    fd: number,
    offset: number,
    address: number,
    length: number,
    user: number,
  ): void {
    const { sqOff } = this.#ring;
    const tail = this.#words[sqOff[1]! / 4]!;
    const index = tail & this.#words[sqOff[2]! / 4]!;
    const sqe = new DataView(this.#sqes.buffer, index * 64, 64);
    for (let i = 0; i < 64; i += 4) sqe.setUint32(i, 0);
    sqe.setUint8(0, opcode);
    sqe.setInt32(4, fd, true);
    sqe.setBigUint64(8, BigInt(offset), true);
    sqe.setBigUint64(16, BigInt(address), true);
    // POLL_ADD has its events where other operations have their flags.
    sqe.setUint32(opcode === TestRing.POLL_ADD ? 28 : 24, length, true);
    sqe.setBigUint64(32, BigInt(user), true);
    this.#words[sqOff[6]! / 4 + index] = index;
    Atomics.store(this.#words, sqOff[1]! / 4, tail + 1);
  }

  /** `io_uring_enter` of this ring, or of what else `fd` is, after the triples of `signals`. */
  enter(
    toSubmit: number,
    minComplete: number,
    timeoutUs: number,
    signals = new Int32Array(0),
    fd = this.fd,
  ): number {
    const call = new Int32Array(callWords(signals.length / 3));
    call.set([fd, toSubmit, minComplete, TestRing.GETEVENTS, timeoutUs, signals.length / 3]);
    call.set(signals, CALL.signals);
    native.ioUringEnter(call.buffer);
    signals.set(call.subarray(CALL.signals));
    return call[CALL.result]!;
  }

  /** Pairs: user data, result. */
  reap(): [number, number][] {
    const { cqOff } = this.#ring;
    const found: [number, number][] = [];
    let head = this.#words[cqOff[0]! / 4]!;
    while (head !== Atomics.load(this.#words, cqOff[1]! / 4)) {
      const at = cqOff[5]! / 4 + (head & this.#words[cqOff[2]! / 4]!) * 4;
      found.push([this.#words[at]!, this.#words[at + 2]! | 0]);
      head = (head + 1) >>> 0;
    }
    Atomics.store(this.#words, cqOff[0]! / 4, head);
    return found;
  }

  close(): void {
    this.#rings.unmap();
    this.#sqes.unmap();
    this.#ring.ring.close();
  }
}
