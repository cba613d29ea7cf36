import { closeSync } from 'node:fs';
import type { FileTarget } from '../../store/file-store.ts';
import type { StoreFactory } from '../../store/store.ts';
import { type BlockingStore, SyncFileStore } from '../../store/sync-store.ts';
import { RpmbError } from '../errors.ts';
import type { RpmbSystem } from '../system.ts';
import type { StateModel } from './commit.ts';
import { type Examination, examine } from './examine.ts';
import { blockingStore, fileTarget, type OpenFile, openFile } from './file.ts';
import { SLOTS, type StateLayout } from './layout.ts';
import { Failed, LiveState } from './live.ts';
import { recover } from './recover.ts';
import { isWrapKey, unwrapKey } from './wrap.ts';

export interface OpenOptions {
  /** For a state whose key is wrapped; the caller wipes it. */
  readonly wrapKey?: Uint8Array;
}

/** An open state: locked, checked, recovered. Serve its `model` on a store over `target`. */
export class StateFile {
  readonly path: string;
  readonly layout: StateLayout;
  /** What a device is made from, here or in a worker, by one at a time. */
  readonly model: StateModel;
  readonly target: FileTarget;
  /** What the user should be told, each in the form `what: why (what to do)`. */
  readonly warnings: readonly string[];
  readonly #live: LiveState;
  #fd: number;

  constructor(file: OpenFile, layout: StateLayout, live: LiveState, warnings: readonly string[]) {
    this.path = file.path;
    this.layout = layout;
    this.model = { layout, live: live.buffer };
    this.target = fileTarget(file);
    this.warnings = warnings;
    this.#live = live;
    this.#fd = file.fd;
  }

  get counter(): number {
    return this.#live.counter;
  }

  get programmed(): boolean {
    return this.#live.programmed;
  }

  /** A commit failed: nothing is written until the file is opened again. */
  get failed(): boolean {
    return this.#live.failed !== Failed.No;
  }

  /** Nothing was committed since the file was made. */
  get unused(): boolean {
    return this.#live.sequence === SLOTS - 1;
  }

  /** The file as a store that completes at once, for use on this thread. */
  get store(): StoreFactory {
    return (sink) => new SyncFileStore(this.#fd, this.target.info, sink);
  }

  /** Wipe what is known of the keys, unlock and close. Nobody may serve it any more. */
  close(): void {
    if (this.#fd < 0) return;
    this.#live.wipe();
    closeSync(this.#fd);
    this.#fd = -1;
  }
}

/** Open a state file to serve it. Throws an RpmbError. */
export function openState(path: string, options: OpenOptions, system: RpmbSystem): StateFile {
  const file = openFile(path, false, system);
  try {
    const { layout, live } = loadState(blockingStore(file), options.wrapKey);
    return new StateFile(file, layout, live, warningsOf(file));
  } catch (error) {
    closeSync(file.fd);
    throw error;
  }
}

/** Check a state, recover it, and learn what a device must know. Throws an RpmbError. */
export function loadState(
  store: BlockingStore,
  wrapKey?: Uint8Array,
): { readonly layout: StateLayout; readonly live: LiveState } {
  const examination = examine(store);
  const { layout, newest } = examination;
  const live = new LiveState();
  try {
    loadKeys(store.info.name, live, examination, wrapKey);
    live.counter = newest.counter;
    live.sequence = newest.sequence;
    recover(store, examination);
    return { layout, live };
  } catch (error) {
    live.wipe();
    throw error;
  } finally {
    wipeSlots(examination);
  }
}

/** Check the wrap key, and put what a device needs of the keys where it takes them from. */
function loadKeys(
  path: string,
  live: LiveState,
  examination: Examination,
  wrapKey: Uint8Array | undefined,
): void {
  const { layout, newest } = examination;
  const { storedKey } = newest;
  checkWrapKey(path, layout, wrapKey);
  live.programmed = storedKey !== undefined;
  if (layout.wrapCheck === undefined || wrapKey === undefined) {
    if (storedKey !== undefined) live.key.set(storedKey);
  } else if (storedKey === undefined) {
    live.wrapper.set(wrapKey);
  } else {
    const key = unwrapKey(wrapKey, layout.id, storedKey);
    if (key === undefined) {
      const remedy = 'make a new state and program its key again';
      throw new RpmbError('DAMAGED', path, 'is damaged: its wrapped key does not unwrap', remedy);
    }
    live.key.set(key);
    key.fill(0);
    live.blob.set(storedKey);
  }
}

/** What was read from the file holds the key too. */
export function wipeSlots(examination: Examination): void {
  for (const slot of examination.replay) {
    slot.bytes.fill(0);
    slot.storedKey?.fill(0);
  }
}

export function checkWrapKey(
  path: string,
  layout: StateLayout,
  wrapKey: Uint8Array | undefined,
): void {
  if (layout.wrapCheck === undefined) {
    if (wrapKey === undefined) return;
    const why = 'its key is not wrapped, so a wrap key opens nothing';
    throw new RpmbError('WRAP_KEY', path, why, 'leave --wrap-key-file out');
  }
  if (wrapKey === undefined) {
    const remedy = 'give the --wrap-key-file it was made with';
    throw new RpmbError('WRAP_KEY', path, 'its key is wrapped', remedy);
  }
  if (!isWrapKey(wrapKey, layout.id, layout.wrapCheck)) {
    const remedy = 'give the --wrap-key-file it was made with';
    throw new RpmbError('WRAP_KEY', path, 'this is not its wrap key', remedy);
  }
}

function warningsOf(file: OpenFile): string[] {
  if (file.allocated) return [];
  return [
    `${file.path}: has holes, so a write can fail when the disk is full (copy it with cp --sparse=never)`,
  ];
}
