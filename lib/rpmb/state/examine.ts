import { timingSafeEqual } from 'node:crypto';
import type { BlockingStore } from '../../store/sync-store.ts';
import { capacityBlocks } from '../config.ts';
import { RpmbError } from '../errors.ts';
import { BLOCK_BYTES, KEY_BYTES } from '../frame.ts';
import {
  BLOB_BYTES,
  decodeHeader,
  decodeSlot,
  fileBytes,
  HEADER_BYTES,
  SLOT_HEADER_BYTES,
  SLOTS,
  type SlotContent,
  type StateLayout,
  slotOffset,
  VERSION,
} from './layout.ts';

/** A slot that is whole, with its bytes: header and redo data. */
export interface WholeSlot extends SlotContent {
  readonly index: number;
  readonly bytes: Uint8Array;
}

/** What a state file holds. */
export interface Examination {
  readonly layout: StateLayout;
  /** By index; undefined where a write was cut off. */
  readonly slots: readonly (WholeSlot | undefined)[];
  /** The whole ones, older first: what is to be replayed, in order. */
  readonly replay: readonly WholeSlot[];
  readonly newest: WholeSlot;
}

const NEW_STATE =
  'make a new one and program its key again; an older copy would bring old data and an old counter back';

/** Read all there is to judge. Throws an RpmbError that says what is wrong; writes nothing. */
export function examine(store: BlockingStore): Examination {
  const what = store.info.name;
  const layout = examineHeader(store);
  const size = store.info.capacity;
  const expected = fileBytes(layout);
  if (size < expected) {
    const why = `is cut short: it has ${size} of its ${expected} bytes`;
    throw new RpmbError('SIZE', what, why, NEW_STATE);
  }
  if (size > expected) {
    const why = `has ${size} bytes, ${size - expected} more than it was made with`;
    throw new RpmbError('SIZE', what, why, `find out who wrote to it; ${NEW_STATE}`);
  }
  const slots: (WholeSlot | undefined)[] = [];
  for (let index = 0; index < SLOTS; index++) slots.push(readSlot(store, layout, index));
  const replay = slots.filter((slot) => slot !== undefined);
  replay.sort((a, b) => a.sequence - b.sequence);
  const newest = replay.at(-1);
  if (newest === undefined) throw damaged(what, 'neither of its two slots is whole');
  for (const slot of replay) checkSlot(what, layout, slot);
  if (replay.length === SLOTS) checkSuccession(what, replay[0]!, newest);
  return { layout, slots, replay, newest };
}

function examineHeader(store: BlockingStore): StateLayout {
  const what = store.info.name;
  const bytes = new Uint8Array(HEADER_BYTES);
  if (store.info.capacity >= HEADER_BYTES) readWhole(store, 0, bytes, 'its header');
  const layout = decodeHeader(bytes);
  const raw = 'to serve a raw image make a state of it: vduse rpmb create STATE --from IMAGE';
  if (layout === 'foreign') {
    const why = store.info.capacity === 0 ? 'is empty' : 'is not an RPMB state file';
    throw new RpmbError('FOREIGN', what, why, raw);
  }
  if (layout === 'newer') {
    const why = `its format is newer than version ${VERSION}, the newest known here`;
    throw new RpmbError('NEWER', what, why, 'use the vduse that made it, or a later one');
  }
  if (layout === 'damaged') throw damaged(what, "its header's checksum or content is wrong");
  return layout;
}

function readSlot(store: BlockingStore, layout: StateLayout, index: number): WholeSlot | undefined {
  const bytes = new Uint8Array(layout.slotBytes);
  readWhole(store, slotOffset(layout, index), bytes, `its slot ${index}`);
  const content = decodeSlot(layout, index, bytes);
  if (content === undefined) return undefined;
  const length = SLOT_HEADER_BYTES + content.blockCount * BLOCK_BYTES;
  return { ...content, index, bytes: bytes.subarray(0, length) };
}

function checkSlot(what: string, layout: StateLayout, slot: WholeSlot): void {
  if (slot.address + slot.blockCount > capacityBlocks(layout)) {
    throw damaged(what, `its slot ${slot.index} names blocks beyond the end`);
  }
  const keyBytes = layout.wrapCheck === undefined ? KEY_BYTES : BLOB_BYTES;
  if (slot.storedKey !== undefined && slot.storedKey.length !== keyBytes) {
    throw damaged(what, `its slot ${slot.index} and its header differ on whether keys are wrapped`);
  }
}

/** Each slot is one commit after the other: the key stays, the counter never goes back. */
function checkSuccession(what: string, older: WholeSlot, newer: WholeSlot): void {
  const steps = newer.counter - older.counter;
  const keyKept =
    older.storedKey === undefined ||
    (newer.storedKey !== undefined && timingSafeEqual(older.storedKey, newer.storedKey));
  const counted = newer.blockCount > 0 ? steps === 1 : steps >= 0;
  if (newer.sequence === older.sequence + 1 && keyKept && counted) return;
  throw damaged(what, 'its two slots contradict each other');
}

export function readWhole(
  store: BlockingStore,
  offset: number,
  into: Uint8Array,
  part: string,
): void {
  const result = store.read(offset, into);
  if (result === into.length) return;
  throw ioError(store.info.name, `${part} cannot be read`, result);
}

/** `result` is what a store gave: -errno, or fewer bytes than asked for. */
export function ioError(what: string, why: string, result: number): RpmbError {
  const how = result < 0 ? `error ${-result}` : `only ${result} bytes`;
  return new RpmbError('SYSTEM', what, `${why}: ${how}`, 'check the disk and its log');
}

function damaged(what: string, why: string): RpmbError {
  return new RpmbError('DAMAGED', what, `is damaged: ${why}`, NEW_STATE);
}
