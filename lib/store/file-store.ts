import { native } from '../native/index.ts';
import {
  type Extent,
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  FALLOC_FL_ZERO_RANGE,
  IoFlag,
  IoKind,
  type IoPort,
  type MapAddress,
  type Memory,
  type RowOwner,
} from '../native/io-table.ts';
import { CachedPages, Copy, type CopyPolicy } from './cached-pages.ts';
import { DirectTransfer } from './direct-transfer.ts';
import { Errno } from './errno.ts';
import { MAX_TOKENS, type Store, type StoreInfo, type StoreSink } from './store.ts';
import { ZeroFill } from './zero-fill.ts';

/** An open image as a reactor gets it: a plain object that `postMessage` carries. */
export interface FileTarget {
  /** Shared by all stores of an image; owned by whoever opened it. */
  readonly fd: number;
  readonly info: StoreInfo;
  /** Opened with O_DIRECT. */
  readonly direct: boolean;
  /** Reads and writes may wait for a device or a network: never run them on a reactor. */
  readonly mayBlock: boolean;
  /**
   * Syncs run on the thread that drives the queue, which has nothing else to do: handing one to
   * another thread and being woken by it can take longer than the disk does.
   */
  readonly syncsInPlace: boolean;
  /** Ranges given to fallocate must be multiples of this (a block device's logical block, else 1). */
  readonly allocationUnit: number;
  /**
   * One word in shared memory: the errno of the first sync that failed, else 0. The kernel tells of
   * lost write-back once per open file and then calls the pages clean, so a later sync that succeeds
   * proves nothing: every flush of the image fails from then on.
   */
  readonly syncFailure: Int32Array;
  /** Where the file is mapped, so that what is cached can be copied; undefined: only by system calls. */
  readonly copies: FileCopies | undefined;
}

export interface FileCopies {
  /** Valid as long as the descriptor. */
  readonly address: MapAddress;
  /** Of `createKnowledge`. */
  readonly knowledge: SharedArrayBuffer;
  /** Its pages are written to a disk, and clean afterwards. */
  readonly writtenBack: boolean;
}

const MODE_PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
const MODE_ZERO = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;

/** What a sync is given. */
const WHOLE_FILE: Extent = { offset: 0, length: 0 };

/** What a token's row means when it comes back. Plain reads and writes are 0 and touch no state. */
const State = {
  Transfer: 0,
  Sync: 1,
  Discard: 2,
  Punch: 3,
  ZeroRange: 4,
  Fill: 5,
  /** By a system call, of pages that may be copied the next time. */
  Learn: 6,
} as const;

/** A regular file or block device, through the engine's rows. One instance serves one queue. */
export class FileStore implements Store, RowOwner {
  readonly info: StoreInfo;
  readonly #port: IoPort;
  readonly #sink: StoreSink;
  readonly #fd: number;
  readonly #flags: number;
  readonly #syncFlags: number;
  readonly #allocationUnit: number;
  readonly #syncFailure: Int32Array;
  readonly #owner: number;
  readonly #direct: DirectTransfer | undefined;
  readonly #map: MapAddress | undefined;
  readonly #copies: CopyPolicy | undefined;
  /** Where a transfer began whose pages are learnt when it ends. */
  readonly #begun: Float64Array | undefined;
  #zeroFill: ZeroFill | undefined;
  readonly #state = new Uint8Array(MAX_TOKENS);
  /** The range of a discard or zeroing, for the next way to do it; made at the first one. */
  #ranges: Float64Array | undefined;
  // Cleared for good when the file system says that it lacks the call.
  #canPunch = true;
  #canZeroRange = true;

  /** `policy`: of a mapped file; what measures best by default. */
  constructor(port: IoPort, target: FileTarget, sink: StoreSink, policy?: CopyPolicy) {
    this.info = target.info;
    this.#port = port;
    this.#sink = sink;
    this.#fd = target.fd;
    this.#flags = target.mayBlock ? IoFlag.MayBlock : 0;
    this.#syncFlags = target.syncsInPlace ? 0 : IoFlag.MayBlock;
    this.#allocationUnit = target.allocationUnit;
    this.#syncFailure = target.syncFailure;
    this.#owner = port.register(this);
    if (target.direct) {
      this.#direct = new DirectTransfer(port, this.#owner, target.fd, target.info);
    }
    if (target.copies !== undefined) {
      this.#map = target.copies.address;
      this.#copies = policy ?? new CachedPages(target.copies, target.info.capacity, native);
      this.#begun = new Float64Array(MAX_TOKENS);
    }
  }

  read(token: number, extent: Extent): void {
    this.#transfer(token, IoKind.Read, extent);
  }

  write(token: number, extent: Extent): void {
    this.#transfer(token, IoKind.Write, extent);
  }

  addMemory(memory: Memory, offset: number, length: number): void {
    if (this.#direct === undefined) this.#port.table.addVector(memory, offset, length);
    else this.#direct.addMemory(memory, offset, length);
  }

  flush(token: number): void {
    if (this.#syncFailure[0] !== 0) {
      this.#sink.completed(token, -this.#syncFailure[0]!);
      return;
    }
    this.#state[token] = State.Sync;
    this.#copies?.writtenBack();
    this.#port.table.push(
      this.#owner,
      token,
      IoKind.Sync,
      this.#fd,
      WHOLE_FILE,
      0,
      this.#syncFlags,
    );
  }

  /**
   * On a block device a punched hole is a zeroing that may unmap, and one that cannot fail half-way
   * into writing zeroes (BLKDEV_ZERO_NOFALLBACK): the only fallocate mode there that gives space back.
   */
  discard(token: number, offset: number, length: number): void {
    if (!this.#canPunch || !this.#allocatable(offset, length)) this.#end(token, 0);
    else this.#allocate(token, State.Discard, MODE_PUNCH, offset, length);
  }

  writeZeroes(token: number, offset: number, length: number, mayUnmap: boolean): void {
    const ranges = (this.#ranges ??= new Float64Array(MAX_TOKENS * 2));
    ranges[token * 2] = offset;
    ranges[token * 2 + 1] = length;
    if (!this.#allocatable(offset, length)) this.#fill(token);
    else if (mayUnmap && this.#canPunch) {
      this.#allocate(token, State.Punch, MODE_PUNCH, offset, length);
    } else this.#zeroRange(token);
  }

  /** The descriptor and its lock stay with the image that was opened. */
  close(): void {
    this.#port.unregister(this.#owner);
    this.#direct?.close();
  }

  rowCompleted(token: number, result: number): void {
    const state = this.#state[token];
    if (state === State.Transfer) {
      const ended = this.#direct === undefined ? result : this.#direct.advance(token, result);
      if (ended !== undefined) this.#sink.completed(token, ended);
      return;
    }
    if (state === State.Sync) {
      this.#synced(token, result);
      return;
    }
    if (state === State.Fill) {
      const ended = this.#zeroFill!.advance(token, result);
      if (ended !== undefined) this.#end(token, ended);
      return;
    }
    if (state === State.Learn) {
      if (result > 0) this.#copies!.learn(this.#begun![token]!, result);
      this.#end(token, result);
      return;
    }
    const lacking = result === -Errno.EOPNOTSUPP || result === -Errno.ENOSYS;
    if (!lacking) this.#end(token, result);
    else if (state === State.ZeroRange) {
      this.#canZeroRange = false;
      this.#fill(token);
    } else {
      this.#canPunch = false;
      // A discard is a hint; nothing is promised of what is read afterwards.
      if (state === State.Discard) this.#end(token, 0);
      else this.#zeroRange(token);
    }
  }

  #transfer(token: number, kind: IoKind, extent: Extent): void {
    if (this.#direct !== undefined) {
      this.#direct.begin(token, kind, extent);
      return;
    }
    const table = this.#port.table;
    table.push(this.#owner, token, kind, this.#fd, extent, 0, this.#flags);
    if (this.#copies === undefined) return;
    const copy = this.#copies.canCopy(extent, kind === IoKind.Write);
    if (copy === Copy.No) return;
    if (copy === Copy.Later) {
      this.#state[token] = State.Learn;
      this.#begun![token] = extent.offset;
    } else {
      table.mapNewest(this.#map!, copy === Copy.Watched ? IoFlag.Watch : 0);
    }
  }

  #synced(token: number, result: number): void {
    if (result < 0 && !isRetryable(-result)) {
      Atomics.compareExchange(this.#syncFailure, 0, 0, -result);
    }
    const failure = this.#syncFailure[0]!;
    this.#end(token, failure === 0 ? result : -failure);
  }

  #allocatable(offset: number, length: number): boolean {
    return offset % this.#allocationUnit === 0 && length % this.#allocationUnit === 0;
  }

  #allocate(token: number, state: number, mode: number, offset: number, length: number): void {
    this.#copies?.forget(offset, length);
    this.#state[token] = state;
    this.#port.table.push(
      this.#owner,
      token,
      IoKind.Allocate,
      this.#fd,
      { offset, length },
      mode,
      IoFlag.MayBlock,
    );
  }

  #zeroRange(token: number): void {
    if (!this.#canZeroRange) {
      this.#fill(token);
      return;
    }
    const ranges = this.#ranges!;
    const offset = ranges[token * 2]!;
    this.#allocate(token, State.ZeroRange, MODE_ZERO, offset, ranges[token * 2 + 1]!);
  }

  #fill(token: number): void {
    this.#state[token] = State.Fill;
    this.#zeroFill ??= new ZeroFill(this.#port, this.#owner, this.#fd);
    const ranges = this.#ranges!;
    this.#zeroFill.begin(token, ranges[token * 2]!, ranges[token * 2 + 1]!);
  }

  #end(token: number, result: number): void {
    this.#state[token] = State.Transfer;
    this.#sink.completed(token, result);
  }
}

/** The sync did not happen, so it lost nothing: the driver may ask again. */
function isRetryable(errno: number): boolean {
  return errno === Errno.EINTR || errno === Errno.EAGAIN || errno === Errno.ECANCELED;
}
