import type { Addon, Mapping } from '../native/addon.ts';
import type { Memory } from '../native/io-table.ts';

/** The system calls an RPMB needs; the addon has them all. */
export type RpmbSystem = Pick<
  Addon,
  'allocate' | 'fallocate' | 'getRandom' | 'lockFile' | 'protectSecret'
>;

/** Private memory for keys and frames: out of core dumps, and out of swap as far as allowed. */
export interface PrivateMemory {
  readonly memory: Memory;
  /** Wipe and unmap. */
  release(): void;
}

export function allocatePrivate(
  system: Pick<RpmbSystem, 'allocate' | 'protectSecret'>,
  bytes: number,
): PrivateMemory {
  const mapping: Mapping = system.allocate(bytes);
  system.protectSecret(mapping);
  const u8 = new Uint8Array(mapping.buffer, 0, bytes);
  return {
    memory: { u8, address: mapping.address },
    release: () => {
      u8.fill(0);
      mapping.unmap();
    },
  };
}
