import { Access, type Chain, type MemoryRegion } from '../virtio/index.ts';
import {
  BlockStatus,
  BlockType,
  MAX_DISCARD_SECTORS,
  MAX_RANGES,
  MAX_ZERO_SECTORS,
  SECTOR_BYTES,
} from './features.ts';

/** type, reserved, sector: what every request begins with (virtio 1.3 §5.2.6). */
const HEADER_BYTES = 16;
/** struct virtio_blk_discard_write_zeroes. */
const RANGE_BYTES = 16;
const RANGE_UNMAP = 1;
/**
 * The most one read or write may move: what Linux moves in one call (MAX_RW_COUNT), and what its
 * 32-bit results can say. A driver comes nowhere near: its own block layer cuts at a few megabytes.
 */
const MAX_DATA_BYTES = 0x7ffff000;

const TWO_32 = 2 ** 32;

/** Stands where no region is; writes to it go nowhere. */
export const NOWHERE: MemoryRegion = {
  start: 0,
  length: 0,
  access: Access.ReadWrite,
  address: 0,
  u8: new Uint8Array(0),
  u16: new Uint16Array(0),
  u32: new Uint32Array(0),
};

/** What the parser must know of the disk. */
export interface Disk {
  /** Bytes. */
  readonly capacity: number;
  readonly blockSize: number;
  readonly readOnly: boolean;
  /** The driver negotiated DISCARD, WRITE_ZEROES. */
  readonly discard: boolean;
  readonly writeZeroes: boolean;
}

/** The scratch record of one request, reused: numbers and the place of the status byte. */
export class BlockRequest {
  /** One of `BlockType` when `status` is Ok. */
  type = 0;
  /** Ok: to be executed. Anything else: to be answered so. */
  status = 0;
  statusRegion: MemoryRegion = NOWHERE;
  statusOffset = 0;
  /** Writable bytes before the status byte. */
  space = 0;
  /** Reads and writes: where on the disk, in bytes, and how much. */
  offset = 0;
  length = 0;
  /** Reads and writes: the segment and the byte in it where data begins. */
  segment = 0;
  skip = 0;
  /** Discards and zeroings: the ranges that are not empty, in bytes. */
  rangeCount = 0;
  readonly rangeOffsets = new Float64Array(MAX_RANGES);
  readonly rangeLengths = new Float64Array(MAX_RANGES);
  readonly rangeUnmaps = new Uint8Array(MAX_RANGES);
}

/**
 * Understands block requests, wherever the driver cut them into descriptors (virtio 1.3 §2.7.4.2,
 * §5.2.6): the header is the first 16 readable bytes, the status the last writable one, and data is
 * what lies between. Everything is read once and checked here; executing trusts it.
 */
export class RequestParser {
  readonly #disk: Disk;
  readonly #capacitySectors: number;
  /** Blocks in a sector: 1, or a fraction of two's powers. */
  readonly #blocksPerSector: number;
  readonly #scratch = new Uint8Array(RANGE_BYTES * MAX_RANGES);
  readonly #scratchWords = new Uint32Array(this.#scratch.buffer);

  constructor(disk: Disk) {
    this.#disk = disk;
    this.#capacitySectors = Math.floor(disk.capacity / SECTOR_BYTES);
    this.#blocksPerSector = SECTOR_BYTES / disk.blockSize;
  }

  /** False when there is no byte to put a status in; otherwise `request.status` says how it stands. */
  parse(chain: Chain, request: BlockRequest): boolean {
    if (chain.writableBytes === 0) return false;
    const last = chain.count - 1;
    request.statusRegion = chain.regions[last]!;
    request.statusOffset = chain.offsets[last]! + chain.lengths[last]! - 1;
    request.space = chain.writableBytes - 1;
    if (chain.readableBytes < HEADER_BYTES) {
      request.status = BlockStatus.IoError;
      return true;
    }
    let type: number;
    let sectorLow: number;
    let sectorHigh: number;
    const region = chain.regions[0]!;
    const at = chain.offsets[0]!;
    // Nearly every driver gives the header a descriptor of its own, aligned.
    if (chain.lengths[0]! >= HEADER_BYTES && (at & 3) === 0) {
      const words = region.u32;
      const word = at >>> 2;
      type = words[word]!;
      sectorLow = words[word + 2]!;
      sectorHigh = words[word + 3]!;
    } else {
      chain.copyOut(0, this.#scratch, 0, HEADER_BYTES);
      type = this.#scratchWords[0]!;
      sectorLow = this.#scratchWords[2]!;
      sectorHigh = this.#scratchWords[3]!;
    }
    request.type = type;
    // Past 2^53 the sum is rounded, to a number that is far outside any disk all the same. Nearly
    // always there is none to make, and no floating-point number to allocate until this is compiled.
    const sector = sectorHigh === 0 ? sectorLow : sectorHigh * TWO_32 + sectorLow;
    request.status = this.#check(chain, request, type, sector);
    return true;
  }

  #check(chain: Chain, request: BlockRequest, type: number, sector: number): number {
    switch (type) {
      case BlockType.In:
        request.segment = chain.readable;
        request.skip = 0;
        return this.#checkTransfer(request, sector, request.space);
      case BlockType.Out:
        if (this.#disk.readOnly) return BlockStatus.IoError;
        skipHeader(chain, request);
        return this.#checkTransfer(request, sector, chain.readableBytes - HEADER_BYTES);
      case BlockType.Flush:
      case BlockType.GetId:
        return BlockStatus.Ok;
      case BlockType.Discard:
        return this.#checkRanges(chain, request, this.#disk.discard, MAX_DISCARD_SECTORS, 0);
      case BlockType.WriteZeroes:
        return this.#checkRanges(
          chain,
          request,
          this.#disk.writeZeroes,
          MAX_ZERO_SECTORS,
          RANGE_UNMAP,
        );
      default:
        return BlockStatus.Unsupported;
    }
  }

  /** No data at all is a whole number of blocks too, and moves nothing. */
  #checkTransfer(request: BlockRequest, sector: number, length: number): number {
    const sectors = length / SECTOR_BYTES;
    if (length > MAX_DATA_BYTES || !this.#onDisk(sector, sectors)) return BlockStatus.IoError;
    request.offset = sector * SECTOR_BYTES;
    request.length = length;
    return BlockStatus.Ok;
  }

  /**
   * Whole blocks inside the disk; subtracting, since a sum could lose bits (or wrap, elsewhere). A
   * product with a power of two is exact, and comparing it costs a tenth of a floating-point `%`.
   */
  #onDisk(sector: number, sectors: number): boolean {
    return (
      isWhole(sectors * this.#blocksPerSector) &&
      isWhole(sector * this.#blocksPerSector) &&
      sector <= this.#capacitySectors - sectors
    );
  }

  /**
   * The segments of a discard or zeroing (virtio 1.3 §5.2.6.2). All are checked before any is
   * executed; an unknown flag, or unmap in a discard, is UNSUPP.
   */
  #checkRanges(
    chain: Chain,
    request: BlockRequest,
    negotiated: boolean,
    maxSectors: number,
    knownFlags: number,
  ): number {
    if (this.#disk.readOnly) return BlockStatus.IoError;
    if (!negotiated) return BlockStatus.Unsupported;
    const bytes = chain.readableBytes - HEADER_BYTES;
    if (bytes === 0 || bytes % RANGE_BYTES !== 0 || bytes > RANGE_BYTES * MAX_RANGES) {
      return BlockStatus.IoError;
    }
    chain.copyOut(HEADER_BYTES, this.#scratch, 0, bytes);
    request.rangeCount = 0;
    for (let word = 0; word < bytes / 4; word += 4) {
      const sector = this.#scratchWords[word + 1]! * TWO_32 + this.#scratchWords[word]!;
      const sectors = this.#scratchWords[word + 2]!;
      const flags = this.#scratchWords[word + 3]!;
      if ((flags & ~knownFlags) !== 0) return BlockStatus.Unsupported;
      if (sectors > maxSectors || !this.#onDisk(sector, sectors)) return BlockStatus.IoError;
      if (sectors === 0) continue;
      const index = request.rangeCount++;
      request.rangeOffsets[index] = sector * SECTOR_BYTES;
      request.rangeLengths[index] = sectors * SECTOR_BYTES;
      request.rangeUnmaps[index] = flags & RANGE_UNMAP;
    }
    return BlockStatus.Ok;
  }
}

function isWhole(number: number): boolean {
  return Math.floor(number) === number;
}

/** Where the data of a write begins: behind the header, perhaps in the same segment. */
function skipHeader(chain: Chain, request: BlockRequest): void {
  let segment = 0;
  let skip = HEADER_BYTES;
  while (segment < chain.readable && skip >= chain.lengths[segment]!) {
    skip -= chain.lengths[segment]!;
    segment++;
  }
  request.segment = segment;
  request.skip = skip;
}
