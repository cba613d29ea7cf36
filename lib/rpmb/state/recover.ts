import type { BlockingStore } from '../../store/sync-store.ts';
import { BLOCK_BYTES } from '../frame.ts';
import { type Examination, ioError } from './examine.ts';
import { dataOffset, SLOT_HEADER_BYTES, slotOffset } from './layout.ts';

/**
 * Bring the data area up to the newest slot, durably. Both whole slots are replayed, older first: the
 * data of the older one was written after its sync and may be synced only by the commit that was cut
 * off, while of that commit nothing but its slot may have reached the disk.
 *
 * Before that the newest slot is written and synced again. After a sync that failed the page cache may
 * show a slot that the disk does not have, and call it clean: its data must not reach the disk before
 * it, nor may the next commit overwrite the only slot that is really there. The second sync comes
 * before anything else is written, since the next commit takes the older slot's place.
 */
export function recover(store: BlockingStore, examination: Examination): void {
  const { layout, replay, newest } = examination;
  writeWhole(store, slotOffset(layout, newest.index), newest.bytes);
  syncWhole(store);
  for (const slot of replay) {
    if (slot.blockCount === 0) continue;
    const at = dataOffset(layout) + slot.address * BLOCK_BYTES;
    writeWhole(store, at, slot.bytes.subarray(SLOT_HEADER_BYTES));
  }
  syncWhole(store);
}

export function writeWhole(store: BlockingStore, offset: number, bytes: Uint8Array): void {
  const result = store.write(offset, bytes);
  if (result !== bytes.length) throw ioError(store.info.name, 'cannot be written', result);
}

export function syncWhole(store: BlockingStore): void {
  const result = store.sync();
  if (result !== 0) throw ioError(store.info.name, 'cannot be made durable', result);
}
