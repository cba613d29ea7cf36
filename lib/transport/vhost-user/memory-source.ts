import type { Addon, Mapping } from '../../native/index.ts';
import type { MemorySource } from '../../reactor/index.ts';
import { Access, GuestMemory } from '../../virtio/index.ts';

/** The name under which the daemon's worker offers this source. */
export const VHOST_USER_MEMORY = 'vhost-user';

/**
 * A run of guest memory that is mapped in one go. Plain data: it goes to the reactors as it is. A
 * piece that is in two tables in turn (same `id`) is the same memory.
 */
export interface MemoryPiece {
  readonly id: number;
  /** Guest address of its first byte; a safe integer. */
  readonly guestAddress: number;
  readonly length: number;
  readonly fd: number;
  /** What to map: `mapLength` bytes from `mapOffset` of the file, at most 4 GiB. */
  readonly mapOffset: number;
  readonly mapLength: number;
  /** Where in the mapping the piece begins; a multiple of 4096. */
  readonly skip: number;
}

/** Guest memory as a front end's memory table gives it. `options` of `replace` are `MemoryPiece[]`. */
export class VhostUserMemory implements MemorySource {
  readonly memory = new GuestMemory();
  readonly #addon: Addon;
  readonly #mappings = new Map<number, Mapping>();

  constructor(addon: Addon, pieces: readonly MemoryPiece[] = []) {
    this.#addon = addon;
    this.replace(pieces);
  }

  poisoned(): boolean {
    for (const mapping of this.#mappings.values()) if (mapping.poisoned) return true;
    return false;
  }

  /** What is in both tables stays mapped: memory hot-plug must not cost a guest all its page tables. */
  replace(options: unknown): void {
    const pieces = (options ?? []) as readonly MemoryPiece[];
    const wanted = new Set(pieces.map(({ id }) => id));
    this.memory.clear();
    for (const [id, mapping] of this.#mappings) {
      if (wanted.has(id)) continue;
      this.#mappings.delete(id);
      mapping.unmap();
    }
    try {
      for (const piece of pieces) this.#add(piece);
    } catch (error) {
      this.release();
      throw error;
    }
  }

  release(): void {
    this.memory.clear();
    for (const mapping of this.#mappings.values()) mapping.unmap();
    this.#mappings.clear();
  }

  #add(piece: MemoryPiece): void {
    const { id, guestAddress: start, length, skip } = piece;
    let mapping = this.#mappings.get(id);
    if (mapping === undefined) {
      mapping = this.#addon.mmap(piece.fd, piece.mapLength, piece.mapOffset, true);
      this.#mappings.set(id, mapping);
    }
    const { buffer } = mapping;
    this.memory.add({
      start,
      length,
      access: Access.ReadWrite,
      address: mapping.address + skip,
      u8: new Uint8Array(buffer, skip, length),
      u16: new Uint16Array(buffer, skip, length >>> 1),
      u32: new Uint32Array(buffer, skip, length >>> 2),
    });
  }
}
