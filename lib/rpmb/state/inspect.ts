import { closeSync } from 'node:fs';
import type { BlockingStore } from '../../store/sync-store.ts';
import { CAPACITY_UNIT, capacityBlocks } from '../config.ts';
import { RpmbError } from '../errors.ts';
import { BLOCK_BYTES } from '../frame.ts';
import type { RpmbSystem } from '../system.ts';
import { type Examination, examine, readWhole, type WholeSlot } from './examine.ts';
import { blockingStore, type OpenFile, openFile } from './file.ts';
import { dataOffset, SLOT_HEADER_BYTES, VERSION } from './layout.ts';
import { checkWrapKey, wipeSlots } from './open.ts';
import { unwrapKey } from './wrap.ts';

/** What a state file says of its device: everything but the key. */
export interface StateReport {
  readonly path: string;
  readonly version: number;
  /** Bytes. */
  readonly capacity: number;
  readonly blocks: number;
  /** 0: no limit. */
  readonly maxWriteBlocks: number;
  readonly maxReadBlocks: number;
  readonly keyProgrammed: boolean;
  readonly keyWrapped: boolean;
  readonly writeCounter: number;
  /** Commits since the file was made. */
  readonly commits: number;
  /** A commit was cut off; the next opening puts things right. */
  readonly interrupted: boolean;
}

/** Look into a state file without changing it. Throws an RpmbError. */
export function inspectState(path: string, system: RpmbSystem): StateReport {
  return looking(path, system, (_file, store) => {
    const examination = examine(store);
    const { layout, newest, replay, slots } = examination;
    const report = {
      path,
      version: VERSION,
      capacity: layout.capacityUnits * CAPACITY_UNIT,
      blocks: capacityBlocks(layout),
      maxWriteBlocks: layout.maxWriteBlocks,
      maxReadBlocks: layout.maxReadBlocks,
      keyProgrammed: newest.storedKey !== undefined,
      keyWrapped: layout.wrapCheck !== undefined,
      writeCounter: newest.counter,
      commits: newest.sequence + 1 - slots.length,
      interrupted: replay.length < slots.length,
    };
    wipeSlots(examination);
    return report;
  });
}

export interface Finding {
  /** `note`: as it may be after a crash; the next opening deals with it. */
  readonly verdict: 'ok' | 'note' | 'wrong';
  readonly part: string;
  readonly text: string;
}

export interface CheckReport {
  readonly path: string;
  /** Nothing is wrong. */
  readonly ok: boolean;
  readonly findings: readonly Finding[];
}

/**
 * Check all that can be checked, changing nothing. What is wrong with the file is in the report;
 * an RpmbError is thrown only where it can't be looked at.
 */
export function checkState(
  path: string,
  options: { readonly wrapKey?: Uint8Array },
  system: RpmbSystem,
): CheckReport {
  return looking(path, system, (file, store) => {
    const findings = findingsOf(file, store, options.wrapKey);
    return { path, ok: findings.every(({ verdict }) => verdict !== 'wrong'), findings };
  });
}

function looking<T>(
  path: string,
  system: RpmbSystem,
  look: (file: OpenFile, store: BlockingStore) => T,
): T {
  const file = openFile(path, true, system);
  try {
    return look(file, blockingStore(file));
  } finally {
    closeSync(file.fd);
  }
}

function findingsOf(
  file: OpenFile,
  store: BlockingStore,
  wrapKey: Uint8Array | undefined,
): Finding[] {
  let examination: Examination;
  try {
    examination = examine(store);
  } catch (error) {
    if (!(error instanceof RpmbError) || error.code === 'ERR_VDUSE_RPMB_SYSTEM') throw error;
    return [{ verdict: 'wrong', part: 'file', text: error.message }];
  }
  const { layout, slots, newest } = examination;
  const findings: Finding[] = [
    { verdict: 'ok', part: 'header', text: `version ${VERSION}, ${capacityBlocks(layout)} blocks` },
  ];
  slots.forEach((slot, index) => {
    findings.push(slotFinding(slot, index, slot === newest));
  });
  findings.push(dataFinding(store, examination));
  if (wrapKey !== undefined || layout.wrapCheck === undefined) {
    findings.push(keyFinding(file.path, examination, wrapKey));
  }
  if (!file.allocated) {
    const text = 'the file has holes, so a write can fail when the disk is full';
    findings.push({ verdict: 'note', part: 'space', text });
  }
  wipeSlots(examination);
  return findings;
}

function slotFinding(slot: WholeSlot | undefined, index: number, newest: boolean): Finding {
  const part = `slot ${index}`;
  if (slot === undefined) {
    return { verdict: 'note', part, text: 'not whole: a commit was cut off' };
  }
  const what = slot.blockCount === 0 ? 'no data' : `${slot.blockCount} blocks at ${slot.address}`;
  const text = `sequence ${slot.sequence}, counter ${slot.counter}, ${what}${newest ? ', newest' : ''}`;
  return { verdict: 'ok', part, text };
}

/** Whether the data area shows what the slots say was written there last. */
function dataFinding(store: BlockingStore, { layout, replay }: Examination): Finding {
  const behind = new Set<number>();
  for (const slot of replay) {
    const area = new Uint8Array(slot.blockCount * BLOCK_BYTES);
    if (area.length > 0) {
      readWhole(store, dataOffset(layout) + slot.address * BLOCK_BYTES, area, 'its data');
    }
    for (let i = 0; i < slot.blockCount; i++) {
      const redo = slot.bytes.subarray(SLOT_HEADER_BYTES + i * BLOCK_BYTES);
      const same = area
        .subarray(i * BLOCK_BYTES, (i + 1) * BLOCK_BYTES)
        .every((byte, j) => byte === redo[j]);
      // The newer slot has the last word on a block of both.
      if (same) behind.delete(slot.address + i);
      else behind.add(slot.address + i);
    }
  }
  if (behind.size === 0) return { verdict: 'ok', part: 'data', text: 'as the slots say' };
  const text = `${behind.size} blocks are behind the slots: the next opening brings them up`;
  return { verdict: 'note', part: 'data', text };
}

function keyFinding(
  path: string,
  { layout, newest }: Examination,
  wrapKey: Uint8Array | undefined,
): Finding {
  const part = 'key';
  try {
    checkWrapKey(path, layout, wrapKey);
  } catch (error) {
    return { verdict: 'wrong', part, text: (error as Error).message };
  }
  const { storedKey } = newest;
  if (storedKey === undefined) return { verdict: 'ok', part, text: 'not programmed' };
  if (wrapKey === undefined) return { verdict: 'ok', part, text: 'programmed' };
  const key = unwrapKey(wrapKey, layout.id, storedKey);
  key?.fill(0);
  return key === undefined
    ? { verdict: 'wrong', part, text: 'does not unwrap' }
    : { verdict: 'ok', part, text: 'programmed, and unwraps' };
}
