import type { Probe } from './probe.ts';

/** One thing that is asked of an RPMB. */
export interface Clause {
  readonly id: string;
  /** Where it is written. */
  readonly source: string;
  readonly text: string;
  /** It writes, or would if the device were wrong. */
  readonly destructive: boolean;
  /** Returns when the clause holds; throws Broken or NotShown. */
  readonly check: (probe: Probe) => Promise<void>;
}

/** Where the clauses are written. */
export const SECTION = {
  key: 'virtio 1.3 §5.12.6.1.1',
  counter: 'virtio 1.3 §5.12.6.1.2',
  write: 'virtio 1.3 §5.12.6.1.3',
  read: 'virtio 1.3 §5.12.6.1.4',
  result: 'virtio 1.3 §5.12.6.1.5',
  frame: 'virtio 1.3 §5.12.6.1',
  kept: 'virtio 1.3 §5.12.6.3',
  chain: 'virtio 1.3 §2.7.8',
} as const;

export function clause(
  id: string,
  source: string,
  text: string,
  check: (probe: Probe) => Promise<void>,
): Clause {
  return { id, source, text, destructive: false, check };
}

/** A clause of the destructive set. */
export function destructive(
  id: string,
  source: string,
  text: string,
  check: (probe: Probe) => Promise<void>,
): Clause {
  return { id, source, text, destructive: true, check };
}
