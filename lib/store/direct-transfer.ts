import {
  type Extent,
  IoFlag,
  IoKind,
  type IoPort,
  type Mapping,
  type Memory,
  native,
} from '../native/index.ts';
import type { StoreInfo } from './store.ts';

/** Slots are few and fixed: what a driver can make us hold must not grow with what it asks for. */
const SLOTS = 16;
const SLOT_BYTES = 128 * 1024;

/** A read or write whose memory the kernel would refuse. */
interface Job {
  readonly token: number;
  readonly kind: IoKind;
  readonly offset: number;
  readonly length: number;
  readonly memories: readonly Memory[];
  readonly offsets: readonly number[];
  readonly lengths: readonly number[];
  /** Bytes moved so far; the piece and the byte in it they end at. */
  done: number;
  piece: number;
  pieceDone: number;
  /** Bytes of the row in flight. */
  chunk: number;
  slot: number;
}

/**
 * Reads and writes of a file opened with O_DIRECT. The kernel wants every piece aligned: its address
 * as the medium's DMA wants it and its length in whole blocks (statx(2), STATX_DIOALIGN). A driver
 * owes us neither, so an operation waits for its last piece; if one is misaligned it goes through an
 * aligned slot of our own instead, chunk by chunk.
 */
export class DirectTransfer {
  readonly #port: IoPort;
  readonly #owner: number;
  readonly #fd: number;
  readonly #addressAlignment: number;
  readonly #lengthAlignment: number;

  // The operation being described.
  #token = 0;
  #kind: IoKind = IoKind.Read;
  readonly #extent = { offset: 0, length: 0 };
  #described = 0;
  #aligned = true;
  #pieces = 0;
  readonly #memories: Memory[] = [];
  readonly #offsets: number[] = [];
  readonly #lengths: number[] = [];

  #slotMapping: Mapping | undefined;
  #slotBytes = new Uint8Array(0);
  readonly #freeSlots: number[] = [];
  readonly #running = new Map<number, Job>();
  readonly #waiting: Job[] = [];

  constructor(port: IoPort, owner: number, fd: number, info: StoreInfo) {
    this.#port = port;
    this.#owner = owner;
    this.#fd = fd;
    this.#addressAlignment = info.memoryAlignment;
    this.#lengthAlignment = info.blockSize;
  }

  begin(token: number, kind: IoKind, { offset, length }: Extent): void {
    this.#token = token;
    this.#kind = kind;
    this.#extent.offset = offset;
    this.#extent.length = length;
    this.#described = 0;
    this.#aligned = true;
    this.#pieces = 0;
  }

  addMemory(memory: Memory, offset: number, length: number): void {
    const index = this.#pieces++;
    this.#memories[index] = memory;
    this.#offsets[index] = offset;
    this.#lengths[index] = length;
    if (
      (memory.address + offset) % this.#addressAlignment !== 0 ||
      length % this.#lengthAlignment !== 0
    ) {
      this.#aligned = false;
    }
    this.#described += length;
    if (this.#described < this.#extent.length) return;
    if (this.#aligned) this.#submitInPlace();
    else this.#submitBounced();
  }

  /** A row ended. The operation's own result, or undefined while it goes on. */
  advance(token: number, result: number): number | undefined {
    const job = this.#running.get(token);
    if (job === undefined) return result;
    if (result > 0) {
      if (job.kind === IoKind.Read) this.#copy(job, result);
      job.done += result;
    }
    if (result === job.chunk && job.done < job.length) {
      this.#submitChunk(job);
      return undefined;
    }
    this.#running.delete(token);
    const next = this.#waiting.shift();
    if (next === undefined) this.#freeSlots.push(job.slot);
    else this.#start(next, job.slot);
    return result < 0 ? result : job.done;
  }

  close(): void {
    this.#slotMapping?.unmap();
  }

  #submitInPlace(): void {
    const { table } = this.#port;
    table.push(this.#owner, this.#token, this.#kind, this.#fd, this.#extent, 0, IoFlag.MayBlock);
    for (let i = 0; i < this.#pieces; i++) {
      table.addVector(this.#memories[i]!, this.#offsets[i]!, this.#lengths[i]!);
    }
  }

  #submitBounced(): void {
    const job: Job = {
      token: this.#token,
      kind: this.#kind,
      ...this.#extent,
      memories: this.#memories.slice(0, this.#pieces),
      offsets: this.#offsets.slice(0, this.#pieces),
      lengths: this.#lengths.slice(0, this.#pieces),
      done: 0,
      piece: 0,
      pieceDone: 0,
      chunk: 0,
      slot: 0,
    };
    if (this.#slotMapping === undefined) {
      this.#slotMapping = native.allocate(SLOTS * SLOT_BYTES);
      this.#slotBytes = new Uint8Array(this.#slotMapping.buffer);
      for (let slot = SLOTS - 1; slot >= 0; slot--) this.#freeSlots.push(slot);
    }
    const slot = this.#freeSlots.pop();
    if (slot === undefined) this.#waiting.push(job);
    else this.#start(job, slot);
  }

  #start(job: Job, slot: number): void {
    job.slot = slot;
    this.#running.set(job.token, job);
    this.#submitChunk(job);
  }

  #submitChunk(job: Job): void {
    job.chunk = Math.min(job.length - job.done, SLOT_BYTES);
    if (job.kind === IoKind.Write) this.#copy(job, job.chunk);
    const { table } = this.#port;
    table.push(
      this.#owner,
      job.token,
      job.kind,
      this.#fd,
      { offset: job.offset + job.done, length: job.chunk },
      0,
      IoFlag.MayBlock,
    );
    const memory = { u8: this.#slotBytes, address: this.#slotMapping!.address };
    table.addVector(memory, job.slot * SLOT_BYTES, job.chunk);
  }

  /** Move `length` bytes between the job's slot and its next pieces. */
  #copy(job: Job, length: number): void {
    const start = job.slot * SLOT_BYTES;
    let done = 0;
    while (done < length) {
      const { u8 } = job.memories[job.piece]!;
      const at = job.offsets[job.piece]! + job.pieceDone;
      const bytes = Math.min(job.lengths[job.piece]! - job.pieceDone, length - done);
      const slot = this.#slotBytes.subarray(start + done, start + done + bytes);
      if (job.kind === IoKind.Write) slot.set(u8.subarray(at, at + bytes));
      else u8.set(slot, at);
      done += bytes;
      job.pieceDone += bytes;
      if (job.pieceDone === job.lengths[job.piece]!) {
        job.piece++;
        job.pieceDone = 0;
      }
    }
  }
}
