import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { native } from '../../lib/native/index.ts';
import {
  IoKind,
  type IoPort,
  IoTable,
  type Memory,
  ROW,
  ROW_WORDS,
  type RowOwner,
} from '../../lib/native/io-table.ts';
import type { StoreSink } from '../../lib/store/index.ts';

/** A row as it was submitted. */
export interface SeenRow {
  readonly kind: number;
  readonly offset: number;
  readonly length: number;
  readonly mode: number;
  readonly flags: number;
  readonly vectors: number;
  /** It may be a copy from or to the file's mapping. */
  readonly mapped: boolean;
}

/** Answers a row in the kernel's place; undefined lets the kernel do it. */
export type RowScript = (row: SeenRow) => number | undefined;

/** An engine that runs its rows when told, on this thread, and remembers them. */
export class TestPort implements IoPort {
  #table = new IoTable(native);
  #spare = new IoTable(native);
  readonly #owners = new Map<number, RowOwner>();
  #nextOwner = 1;
  readonly delayed: { owner: number; token: number; microseconds: number }[] = [];
  readonly rows: SeenRow[] = [];
  script: RowScript | undefined;

  get table(): IoTable {
    return this.#table;
  }

  get owners(): number {
    return this.#owners.size;
  }

  register(owner: RowOwner): number {
    this.#owners.set(this.#nextOwner, owner);
    return this.#nextOwner++;
  }

  unregister(owner: number): void {
    this.#owners.delete(owner);
  }

  after(owner: number, token: number, microseconds: number): void {
    this.delayed.push({ owner, token, microseconds });
  }

  /** End what `after` was asked for. */
  elapse(): void {
    for (const { owner, token } of this.delayed.splice(0)) {
      this.#owners.get(owner)!.rowCompleted(token, 0);
    }
  }

  /** One turn: run what is in the table; completions fill the next one. */
  turn(): number {
    const table = this.#table;
    this.#table = this.#spare;
    this.#spare = table;
    const { count, rows } = table;
    const results: number[] = [];
    for (let i = 0; i < count; i++) {
      const row = seen(rows, i * ROW_WORDS);
      this.rows.push(row);
      let result = this.script?.(row);
      if (result === undefined) {
        native.ioRun(table.rowBuffer, table.vectorBuffer, i, 1);
        result = rows[i * ROW_WORDS + ROW.result]!;
      }
      results.push(result);
    }
    for (let i = 0; i < count; i++) {
      const at = i * ROW_WORDS;
      this.#owners.get(rows[at + ROW.owner]!)!.rowCompleted(rows[at + ROW.token]!, results[i]!);
    }
    table.clear();
    return count;
  }

  run(): void {
    while (this.turn() > 0);
  }
}

function seen(rows: Int32Array, at: number): SeenRow {
  const word = (field: number) => rows[at + field]! >>> 0;
  return {
    kind: word(ROW.kind),
    offset: word(ROW.offset) + word(ROW.offset + 1) * 2 ** 32,
    length: word(ROW.length) + word(ROW.length + 1) * 2 ** 32,
    mode: word(ROW.kind) === IoKind.Allocate ? word(ROW.mode) : 0,
    flags: word(ROW.flags),
    vectors: word(ROW.vectorCount),
    mapped: word(ROW.kind) <= IoKind.Write && (word(ROW.map) !== 0 || word(ROW.map + 1) !== 0),
  };
}

/** Remembers what completed. */
export class Results implements StoreSink {
  readonly list: [number, number][] = [];

  completed(token: number, result: number): void {
    this.list.push([token, result]);
  }

  /** All that completed since the last call. */
  take(): [number, number][] {
    return this.list.splice(0);
  }
}

/** Page-aligned memory, as a mapped guest's is. */
export function guestMemory(length: number): Memory {
  const mapping = native.allocate(length);
  return { u8: new Uint8Array(mapping.buffer), address: mapping.address };
}

/** A folder for images on each kind of file system at hand: a disk's, and one without ZERO_RANGE. */
export const FOLDERS = ['/var/tmp', '/dev/shm'].filter((folder) => existsSync(folder));

export function temporaryFolder(t: { teardown(fn: () => void): void }, parent: string): string {
  const folder = mkdtempSync(join(parent, 'vduse-store-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Attach a loop device; undefined where this user or this machine has none. */
export function attachLoop(
  t: { teardown(fn: () => void): void },
  image: string,
  ...options: string[]
): string | undefined {
  const { status, stdout } = spawnSync('losetup', ['--find', '--show', ...options, image], {
    encoding: 'utf8',
  });
  if (status !== 0) return undefined;
  const device = stdout.trim();
  t.teardown(() => spawnSync('losetup', ['--detach', device]));
  return device;
}

/** Run `body` with the file permissions of an ordinary user. */
export function unprivileged<T>(body: () => T): T {
  if (process.geteuid!() !== 0) return body();
  process.setegid!(65534);
  process.seteuid!(65534);
  try {
    return body();
  } finally {
    process.seteuid!(0);
    process.setegid!(0);
  }
}
