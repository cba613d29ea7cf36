import type { FrontendQueue } from './queue.ts';
import { type FrontendOptions, type StartOptions, VhostUserFrontend } from './vhost-user.ts';

/** Feature bits of a block device that this client has a use for (virtio 1.3 §5.2.3). */
const F_RO = 1n << 5n;
const F_BLK_SIZE = 1n << 6n;
const F_FLUSH = 1n << 9n;
const F_MQ = 1n << 12n;
const F_DISCARD = 1n << 13n;
const F_WRITE_ZEROES = 1n << 14n;
const FEATURES = F_RO | F_BLK_SIZE | F_FLUSH | F_MQ | F_DISCARD | F_WRITE_ZEROES;

/** Request types (virtio 1.3 §5.2.6). */
export const BlockRequestType = {
  Read: 0,
  Write: 1,
  Flush: 4,
  GetId: 8,
  Discard: 11,
  WriteZeroes: 13,
} as const;

export const BLOCK_HEADER_BYTES = 16;
const SECTOR = 512;
const ID_BYTES = 20;
/** Configuration space up to and with write_zeroes_may_unmap (virtio 1.3 §5.2.4). */
const CONFIG_BYTES = 60;
const OK = 0;
const UNSUPPORTED = 2;

/** Reads and writes go in pieces of this many bytes. */
const PIECE = 1 << 20;

/** A request that the device did not carry out. */
export class BlockError extends Error {
  readonly code: 'ERR_VDUSE_BLOCK_IO' | 'ERR_VDUSE_BLOCK_UNSUPPORTED';

  constructor(what: string, status: number) {
    const unsupported = status === UNSUPPORTED;
    super(`${what}: ${unsupported ? 'not supported by the device' : `failed, status ${status}`}`);
    this.name = 'BlockError';
    this.code = unsupported ? 'ERR_VDUSE_BLOCK_UNSUPPORTED' : 'ERR_VDUSE_BLOCK_IO';
  }
}

export interface ZeroOptions {
  /** The space may be given back. */
  readonly unmap?: boolean;
}

/** A disk behind a vhost-user socket, as promises. Offsets and lengths are bytes, whole sectors of 512. */
export class BlockClient {
  readonly frontend: VhostUserFrontend;
  /** Bytes. */
  readonly capacity: number;
  readonly blockSize: number;
  readonly readOnly: boolean;
  readonly canDiscard: boolean;
  readonly canWriteZeroes: boolean;
  readonly #queues: readonly FrontendQueue[];
  readonly #config: DataView;
  #turn = 0;

  /** Connect, negotiate, start the queues. */
  static async connect(options: FrontendOptions & StartOptions): Promise<BlockClient> {
    const frontend = await VhostUserFrontend.connect(options);
    try {
      const config = await frontend.readConfig(0, CONFIG_BYTES);
      const queues = await frontend.start({
        ...options,
        features: FEATURES | (options.features ?? 0n),
      });
      return new BlockClient(frontend, queues, config);
    } catch (error) {
      await frontend.close();
      throw error;
    }
  }

  private constructor(
    frontend: VhostUserFrontend,
    queues: readonly FrontendQueue[],
    config: Uint8Array,
  ) {
    const has = (feature: bigint) => (frontend.features & feature) !== 0n;
    this.frontend = frontend;
    this.#queues = queues;
    this.#config = new DataView(config.buffer, config.byteOffset, config.length);
    this.capacity = Number(this.#config.getBigUint64(0, true)) * SECTOR;
    this.blockSize = has(F_BLK_SIZE) ? this.#config.getUint32(20, true) : SECTOR;
    this.readOnly = has(F_RO);
    this.canDiscard = has(F_DISCARD);
    this.canWriteZeroes = has(F_WRITE_ZEROES);
  }

  async read(offset: number, length: number): Promise<Uint8Array> {
    const into = new Uint8Array(length);
    await this.#inPieces(offset, length, async (at, bytes) => {
      const header = buildHeader(BlockRequestType.Read, (offset + at) / SECTOR);
      const data = await this.#send(`read of ${bytes} at ${offset + at}`, [header], [bytes]);
      into.set(data[0]!, at);
    });
    return into;
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    await this.#inPieces(offset, data.length, async (at, bytes) => {
      const header = buildHeader(BlockRequestType.Write, (offset + at) / SECTOR);
      const piece = data.subarray(at, at + bytes);
      await this.#send(`write of ${bytes} at ${offset + at}`, [header, piece], []);
    });
  }

  /** What was written before is durable afterwards. */
  async flush(): Promise<void> {
    await this.#send('flush', [buildHeader(BlockRequestType.Flush, 0)], []);
  }

  /** Give space back; what is read there afterwards is undefined. */
  async discard(offset: number, length: number): Promise<void> {
    // max_discard_sectors
    await this.#inRanges(BlockRequestType.Discard, offset, length, this.#sectors(36), 0);
  }

  async writeZeroes(offset: number, length: number, options: ZeroOptions = {}): Promise<void> {
    // max_write_zeroes_sectors
    const flags = options.unmap === true ? 1 : 0;
    await this.#inRanges(BlockRequestType.WriteZeroes, offset, length, this.#sectors(48), flags);
  }

  /** The serial number: at most 20 bytes, without the zeroes that follow it. */
  async getId(): Promise<string> {
    const data = await this.#send('id', [buildHeader(BlockRequestType.GetId, 0)], [ID_BYTES]);
    const id = data[0]!;
    const end = id.indexOf(0);
    return Buffer.from(end < 0 ? id : id.subarray(0, end)).toString('latin1');
  }

  close(): Promise<void> {
    return this.frontend.close();
  }

  /** A limit of the configuration space, in sectors; where the device has none: the largest number. */
  #sectors(at: number): number {
    return this.#config.getUint32(at, true) || 0xffff_ffff;
  }

  /** Send one request; resolves with its data when its status says that it was carried out. */
  async #send(
    what: string,
    readable: readonly Uint8Array[],
    writable: readonly number[],
  ): Promise<Uint8Array[]> {
    const queue = this.#queues[this.#turn++ % this.#queues.length]!;
    const { data } = await queue.submit(readable, [...writable, 1]);
    const status = data.pop()![0]!;
    if (status !== OK) throw new BlockError(what, status);
    return data;
  }

  async #inPieces(
    offset: number,
    length: number,
    send: (at: number, bytes: number) => Promise<void>,
  ): Promise<void> {
    checkSectors(offset, length);
    const pieces: Promise<void>[] = [];
    for (let at = 0; at < length; at += PIECE) pieces.push(send(at, Math.min(PIECE, length - at)));
    await allOf(pieces);
  }

  /** DISCARD and WRITE_ZEROES: ranges of at most `most` sectors (virtio 1.3 §5.2.6.2). */
  async #inRanges(
    type: number,
    offset: number,
    length: number,
    most: number,
    flags: number,
  ): Promise<void> {
    checkSectors(offset, length);
    const requests: Promise<unknown>[] = [];
    for (let at = 0; at < length; at += most * SECTOR) {
      const bytes = Math.min(most * SECTOR, length - at);
      const range = new Uint8Array(16);
      const view = new DataView(range.buffer);
      view.setBigUint64(0, BigInt((offset + at) / SECTOR), true);
      view.setUint32(8, bytes / SECTOR, true);
      view.setUint32(12, flags, true);
      const what = type === BlockRequestType.Discard ? 'discard' : 'write zeroes';
      const header = buildHeader(type, 0);
      requests.push(this.#send(`${what} of ${bytes} at ${offset + at}`, [header, range], []));
    }
    await allOf(requests);
  }
}

/** Wait for all of them to end, whatever comes of them, then fail like the first that failed. */
async function allOf(requests: readonly Promise<unknown>[]): Promise<void> {
  const results = await Promise.allSettled(requests);
  const failed = results.find((result) => result.status === 'rejected');
  if (failed !== undefined) throw failed.reason;
}

function checkSectors(offset: number, length: number): void {
  const whole = (n: number) => Number.isSafeInteger(n) && n >= 0 && n % SECTOR === 0;
  if (!whole(offset) || !whole(length)) {
    throw new RangeError(`${length} bytes at ${offset}: not whole sectors of ${SECTOR} bytes`);
  }
}

function buildHeader(type: number, sector: number): Uint8Array {
  const header = new Uint8Array(BLOCK_HEADER_BYTES);
  const view = new DataView(header.buffer);
  view.setUint32(0, type, true);
  view.setBigUint64(8, BigInt(sector), true);
  return header;
}
