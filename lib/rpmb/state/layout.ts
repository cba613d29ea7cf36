import { createHash, timingSafeEqual } from 'node:crypto';
import { CAPACITY_UNIT, effectiveLimit, MAX_CAPACITY_UNITS, type RpmbLimits } from '../config.ts';
import { BLOCK_BYTES, KEY_BYTES } from '../frame.ts';

/**
 * The state file, version 1. All numbers little-endian.
 *
 *     0                     header, 512 bytes of a page; written once, at creation
 *     4096                  slot 0
 *     4096 + slotBytes      slot 1
 *     4096 + 2 × slotBytes  data area, `capacity` bytes
 *
 * Header: magic[8]@0, u32 version@8, u32 flags@12 (1: the key is wrapped), id[16]@16,
 * u32 capacity units@32, u32 max write blocks@36, u32 max read blocks@40, u32 slotBytes@44,
 * nonce[12]@48 and tag[16]@60 that tell the right wrap key; SHA-256 of bytes 0 … 479 @480.
 *
 * Slot: magic[4]@0, u32 flags@4 (1: there is a key, 2: it is wrapped), u64 sequence@8,
 * u32 counter@16, u16 address@20, u16 block count@22, key[32] or nonce[12] key[32] tag[16]@32;
 * SHA-256 of the file's id, bytes 0 … 479 and the redo data @480; then the redo data,
 * block count × 256 bytes.
 */
export const VERSION = 1;
export const HEADER_BYTES = 512;
export const SLOT_HEADER_BYTES = 512;
export const ID_BYTES = 16;
/** A slot is a run of whole pages, so that the two never share one. */
export const PAGE = 4096;
export const SLOTS = 2;

const MAGIC = Uint8Array.from('VDUSERPM', (c) => c.charCodeAt(0));
const SLOT_MAGIC = 0x544f4c53;
const SUM_AT = 480;
const SUM_BYTES = 32;

const HEADER_WRAPPED = 1;
const SLOT_KEY = 1;
const SLOT_WRAPPED = 2;

export const WRAP_NONCE_BYTES = 12;
export const WRAP_TAG_BYTES = 16;
/** A wrapped key: nonce, ciphertext, tag. */
export const BLOB_BYTES = WRAP_NONCE_BYTES + KEY_BYTES + WRAP_TAG_BYTES;
const SLOT_KEY_AT = 32;
const CHECK_AT = 48;
export const WRAP_CHECK_BYTES = WRAP_NONCE_BYTES + WRAP_TAG_BYTES;

/** What a state file is like; never changes. A plain object that `postMessage` carries. */
export interface StateLayout extends RpmbLimits {
  /** Random: a slot of another file is never taken for one of this. */
  readonly id: Uint8Array;
  readonly slotBytes: number;
  /** The authentication key is stored wrapped; this tells the right wrap key. */
  readonly wrapCheck: Uint8Array | undefined;
}

/** Room for the largest redo record, in whole pages. */
export function slotBytesFor(limits: RpmbLimits): number {
  const redo = effectiveLimit(limits.maxWriteBlocks, limits) * BLOCK_BYTES;
  return Math.ceil((SLOT_HEADER_BYTES + redo) / PAGE) * PAGE;
}

export function slotOffset(layout: StateLayout, slot: number): number {
  return PAGE + slot * layout.slotBytes;
}

export function dataOffset(layout: StateLayout): number {
  return slotOffset(layout, SLOTS);
}

export function fileBytes(layout: StateLayout): number {
  return dataOffset(layout) + layout.capacityUnits * CAPACITY_UNIT;
}

/** Slots are used in turn. */
export function slotOf(sequence: number): number {
  return sequence % SLOTS;
}

export function encodeHeader(layout: StateLayout): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES);
  const view = new DataView(bytes.buffer);
  bytes.set(MAGIC);
  view.setUint32(8, VERSION, true);
  view.setUint32(12, layout.wrapCheck === undefined ? 0 : HEADER_WRAPPED, true);
  bytes.set(layout.id, 16);
  view.setUint32(32, layout.capacityUnits, true);
  view.setUint32(36, layout.maxWriteBlocks, true);
  view.setUint32(40, layout.maxReadBlocks, true);
  view.setUint32(44, layout.slotBytes, true);
  if (layout.wrapCheck !== undefined) bytes.set(layout.wrapCheck, CHECK_AT);
  bytes.set(createHash('sha256').update(bytes.subarray(0, SUM_AT)).digest(), SUM_AT);
  return bytes;
}

/** The layout, or the word for what is wrong with the header. */
export function decodeHeader(bytes: Uint8Array): StateLayout | 'foreign' | 'newer' | 'damaged' {
  if (bytes.length < HEADER_BYTES || !MAGIC.every((byte, i) => bytes[i] === byte)) return 'foreign';
  const view = new DataView(bytes.buffer, bytes.byteOffset, HEADER_BYTES);
  if (view.getUint32(8, true) > VERSION) return 'newer';
  const sum = createHash('sha256').update(bytes.subarray(0, SUM_AT)).digest();
  if (!timingSafeEqual(sum, bytes.subarray(SUM_AT, HEADER_BYTES))) return 'damaged';
  const layout: StateLayout = {
    id: bytes.slice(16, 16 + ID_BYTES),
    capacityUnits: view.getUint32(32, true),
    maxWriteBlocks: view.getUint32(36, true),
    maxReadBlocks: view.getUint32(40, true),
    slotBytes: view.getUint32(44, true),
    wrapCheck:
      (view.getUint32(12, true) & HEADER_WRAPPED) === 0
        ? undefined
        : bytes.slice(CHECK_AT, CHECK_AT + WRAP_CHECK_BYTES),
  };
  return isSound(layout) ? layout : 'damaged';
}

/** A checksum says that nothing fell over; this, that whoever wrote it meant what we mean. */
function isSound(layout: StateLayout): boolean {
  const { capacityUnits, maxWriteBlocks, maxReadBlocks } = layout;
  return (
    capacityUnits >= 1 &&
    capacityUnits <= MAX_CAPACITY_UNITS &&
    maxWriteBlocks <= 0xff &&
    maxReadBlocks <= 0xff &&
    layout.slotBytes === slotBytesFor(layout)
  );
}

/** What a slot says of the device, and the write it is the redo record of (no block: none). */
export interface SlotContent {
  readonly sequence: number;
  readonly counter: number;
  readonly address: number;
  readonly blockCount: number;
  /** The key, or its wrapped form. */
  readonly storedKey: Uint8Array | undefined;
}

/** Write a slot's header into `bytes`; `redo` gives its data piece by piece. */
export function encodeSlot(
  layout: StateLayout,
  content: SlotContent,
  redo: readonly Uint8Array[],
  bytes: Uint8Array,
): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, SLOT_HEADER_BYTES);
  bytes.fill(0, 0, SLOT_HEADER_BYTES);
  const wrapped = layout.wrapCheck === undefined ? 0 : SLOT_WRAPPED;
  view.setUint32(0, SLOT_MAGIC, true);
  view.setUint32(4, content.storedKey === undefined ? 0 : SLOT_KEY | wrapped, true);
  view.setUint32(8, content.sequence, true);
  view.setUint32(12, content.sequence / 2 ** 32, true);
  view.setUint32(16, content.counter, true);
  view.setUint16(20, content.address, true);
  view.setUint16(22, content.blockCount, true);
  if (content.storedKey !== undefined) bytes.set(content.storedKey, SLOT_KEY_AT);
  bytes.set(slotSum(layout, bytes, redo), SUM_AT);
}

/**
 * Read a slot (its header and the room for redo data behind it): undefined when it is not whole,
 * as after a write that was cut off.
 */
export function decodeSlot(
  layout: StateLayout,
  slot: number,
  bytes: Uint8Array,
): SlotContent | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const blockCount = view.getUint16(22, true);
  const end = SLOT_HEADER_BYTES + blockCount * BLOCK_BYTES;
  if (view.getUint32(0, true) !== SLOT_MAGIC || end > bytes.length) return undefined;
  const sum = slotSum(layout, bytes, [bytes.subarray(SLOT_HEADER_BYTES, end)]);
  if (!timingSafeEqual(sum, bytes.subarray(SUM_AT, SUM_AT + SUM_BYTES))) return undefined;
  const sequence = view.getUint32(8, true) + view.getUint32(12, true) * 2 ** 32;
  if (slotOf(sequence) !== slot) return undefined;
  const flags = view.getUint32(4, true);
  const keyBytes = (flags & SLOT_WRAPPED) === 0 ? KEY_BYTES : BLOB_BYTES;
  return {
    sequence,
    counter: view.getUint32(16, true),
    address: view.getUint16(20, true),
    blockCount,
    storedKey:
      (flags & SLOT_KEY) === 0 ? undefined : bytes.slice(SLOT_KEY_AT, SLOT_KEY_AT + keyBytes),
  };
}

function slotSum(layout: StateLayout, header: Uint8Array, redo: readonly Uint8Array[]): Uint8Array {
  const hash = createHash('sha256').update(layout.id).update(header.subarray(0, SUM_AT));
  for (const piece of redo) hash.update(piece);
  return hash.digest();
}
