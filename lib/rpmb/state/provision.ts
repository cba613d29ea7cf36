import { timingSafeEqual } from 'node:crypto';
import { RpmbError } from '../errors.ts';
import { MAX_COUNTER } from '../frame.ts';
import { checkKey } from '../key-file.ts';
import { allocatePrivate, type RpmbSystem } from '../system.ts';
import { RpmbState, STATE_MEMORY_BYTES } from './commit.ts';
import type { StateFile } from './open.ts';

export interface Provision {
  /** The key the device must have; the caller wipes it. */
  readonly key?: Uint8Array;
  /** The write counter a device begins with that was never used. */
  readonly initialCounter?: number;
}

/**
 * Give an open state what a daemon's command line says of a new one. The same command line is used
 * again at the next start, so what is there already stays; a key that differs is an error. Returns
 * what was not done, in words.
 */
export function provisionState(
  state: StateFile,
  provision: Provision,
  system: RpmbSystem,
): string[] {
  if (provision.key !== undefined) checkKey(provision.key, 'the key');
  const { memory, release } = allocatePrivate(system, STATE_MEMORY_BYTES);
  const target = new RpmbState({
    model: state.model,
    store: state.store,
    memory,
    getRandom: (into) => system.getRandom(into),
  });
  try {
    const notes = startCounter(state, target, provision.initialCounter);
    if (provision.key !== undefined) setKey(state, target, provision.key);
    return notes;
  } finally {
    target.close();
    release();
  }
}

function startCounter(state: StateFile, target: RpmbState, counter: number | undefined): string[] {
  if (counter === undefined || counter === target.counter) return [];
  if (!Number.isInteger(counter) || counter < 0 || counter > MAX_COUNTER) {
    const remedy = `give 0 to ${MAX_COUNTER}`;
    throw new RpmbError('OPTIONS', `--initial-counter ${counter}`, 'out of range', remedy);
  }
  // A counter that goes back, or jumps, would void what its clients rely on.
  if (!state.unused || counter < target.counter) {
    return [`${state.path}: in use since before, so its counter stays at ${target.counter}`];
  }
  target.startCounter(counter, (ok) => mustBeDone(state, ok));
  return [];
}

function setKey(state: StateFile, target: RpmbState, key: Uint8Array): void {
  if (!target.programmed) {
    target.programKey(key, (ok) => mustBeDone(state, ok));
    return;
  }
  if (timingSafeEqual(key, target.key)) return;
  const remedy = 'a key is programmed once; give the one it has, or make a new state';
  throw new RpmbError('PROVISIONED', state.path, 'has another key', remedy);
}

function mustBeDone(state: StateFile, ok: boolean): void {
  if (ok) return;
  const remedy = 'check the disk and its log, then open it again';
  throw new RpmbError('SYSTEM', state.path, 'cannot be written', remedy);
}
