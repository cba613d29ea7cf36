import {
  BLOCK_COUNTERS,
  type BlockOptions,
  BlockQueueDevice,
  blockFeatures,
} from '../../lib/block/index.ts';
import { MemoryStore, type MemoryStoreOptions, MockMemory } from '../../lib/testing/index.ts';
import { Chain, type FaultReason, type QueuePort } from '../../lib/virtio/index.ts';

export const CAPACITY = 64 * 1024;

export const DISK: BlockOptions = {
  capacity: CAPACITY,
  blockSize: 512,
  physicalBlockSize: 4096,
  readOnly: false,
  queues: 1,
  queueSize: 256,
  serial: 'S1',
  discard: true,
};

export interface Answer {
  readonly head: number;
  readonly written: number;
}

export class RecordingPort implements QueuePort {
  readonly answers: Answer[] = [];
  readonly failures: { reason: FaultReason; head: number; detail: number }[] = [];

  complete(head: number, written: number): void {
    this.answers.push({ head, written });
  }

  fail(reason: FaultReason, head: number, detail: number): void {
    this.failures.push({ reason, head, detail });
  }
}

/** What the disk holds at first: nothing that looks `UNWRITTEN`. */
const CONTENT = Uint8Array.from({ length: CAPACITY }, (_, i) => i % 199);

/** One block queue on a store in memory. */
export class Bench {
  readonly port = new RecordingPort();
  readonly counters = new Float64Array(BLOCK_COUNTERS);
  readonly bytes = CONTENT.slice();
  readonly device: BlockQueueDevice;
  store!: MemoryStore;

  constructor(
    options: Partial<BlockOptions> & { driverFeatures?: bigint } = {},
    store: MemoryStoreOptions = { immediate: true },
  ) {
    const disk = { ...DISK, ...options };
    this.device = new BlockQueueDevice({
      port: this.port,
      store: (sink) => {
        this.store = new MemoryStore(this.bytes, sink, store);
        return this.store;
      },
      options: disk,
      driverFeatures: options.driverFeatures ?? blockFeatures(disk),
      counters: this.counters,
    });
  }

  /** Begin a request; its answer is there once the store is done. */
  begin(request: TestRequest): void {
    this.device.begin(request.chain);
  }

  /** Begin a request on an immediate store and return how it ended. */
  run(request: TestRequest): { status: number; used: number; data: Uint8Array } {
    const before = this.port.answers.length;
    this.begin(request);
    if (this.port.answers.length !== before + 1) throw new Error('not answered exactly once');
    const answer = this.port.answers.at(-1)!;
    if (answer.head !== request.chain.head) throw new Error('another head answered');
    return { status: request.status, used: answer.written, data: request.data };
  }
}

/** A cut of a byte run: lengths of its pieces, and how far each lies off a word boundary. */
export interface Cut {
  readonly lengths: readonly number[];
  readonly offsets: readonly number[];
}

export interface RequestShape {
  readonly head?: number;
  readonly readable: Uint8Array;
  readonly writable: number;
  /** Pieces of the readable and writable bytes; header, data and status apart unless given. */
  readonly readableCut?: Cut;
  readonly writableCut?: Cut;
}

/** What a status byte holds until it is written. */
export const UNWRITTEN = 0xee;

/** A request as a driver builds it, in memory of its own with guards around each piece. */
export class TestRequest {
  readonly chain = new Chain();
  readonly #memory = new MockMemory();

  constructor(shape: RequestShape) {
    const { readable, writable } = shape;
    this.chain.reset(shape.head ?? 0);
    const readableCut = shape.readableCut ?? cutAt(readable.length, 16);
    const writableCut = shape.writableCut ?? cutAt(writable, writable - 1);
    let done = 0;
    readableCut.lengths.forEach((length, i) => {
      const offset = readableCut.offsets[i]!;
      const region = this.#memory.create(0, offset + length);
      region.u8.set(readable.subarray(done, done + length), offset);
      this.chain.add(region, offset, length, false);
      done += length;
    });
    writableCut.lengths.forEach((length, i) => {
      const offset = writableCut.offsets[i]!;
      const region = this.#memory.create(0, offset + length);
      region.u8.fill(UNWRITTEN, offset);
      this.chain.add(region, offset, length, true);
    });
  }

  /** All writable bytes. */
  get written(): Uint8Array {
    const { chain } = this;
    const all = new Uint8Array(chain.writableBytes);
    for (let i = chain.readable, at = 0; i < chain.count; at += chain.lengths[i++]!) {
      const offset = chain.offsets[i]!;
      all.set(chain.regions[i]!.u8.subarray(offset, offset + chain.lengths[i]!), at);
    }
    return all;
  }

  get status(): number {
    return this.written.at(-1)!;
  }

  /** The writable bytes before the status. */
  get data(): Uint8Array {
    return this.written.subarray(0, -1);
  }

  /** Nothing was written outside the pieces. */
  get intact(): boolean {
    return this.#memory.intact;
  }
}

function cutAt(length: number, at: number): Cut {
  const lengths = [Math.min(at, length), length - at].filter((part) => part > 0);
  return { lengths, offsets: lengths.map(() => 0) };
}

export function header(type: number, sector: number | bigint): Uint8Array {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, type, true);
  view.setBigUint64(8, BigInt.asUintN(64, BigInt(sector)), true);
  return bytes;
}

export interface TestRange {
  readonly sector: number | bigint;
  readonly sectors: number;
  readonly flags?: number;
}

export function ranges(...list: TestRange[]): Uint8Array {
  const bytes = new Uint8Array(list.length * 16);
  const view = new DataView(bytes.buffer);
  list.forEach(({ sector, sectors, flags = 0 }, i) => {
    view.setBigUint64(i * 16, BigInt.asUintN(64, BigInt(sector)), true);
    view.setUint32(i * 16 + 8, sectors, true);
    view.setUint32(i * 16 + 12, flags, true);
  });
  return bytes;
}

export function concat(...parts: Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts));
}

/** A request with header, payload and `space` writable bytes before the status. */
export function request(
  type: number,
  sector: number | bigint,
  payload: Uint8Array | number = 0,
  head = 0,
): TestRequest {
  return typeof payload === 'number'
    ? new TestRequest({ head, readable: header(type, sector), writable: payload + 1 })
    : new TestRequest({ head, readable: concat(header(type, sector), payload), writable: 1 });
}
