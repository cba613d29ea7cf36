import { closeSync, openSync } from 'node:fs';
import type { Addon } from '../native/index.ts';
import type { ReactorOptions, WorkerTables } from '../reactor/index.ts';
import { RehearsalLife } from './rehearsal-life.ts';
import { DISK_BYTES } from './rehearsal-ring.ts';

/** Requests of a short life, one at a time; then as many in small batches. */
const SHORT = 32;
/** Requests until V8 has found what they run through hot, and compiled it: one at a time, in batches. */
const SINGLE = 3200;
const BATCHED = 2400;
const DEPTH = 16;
/** Requests between two looks at the orders that came meanwhile. */
const SLICE = 32;
/** A machine that takes longer has better things to do. */
const LIMIT_MS = 2000;

/**
 * Serves a made-up disk on an engine's thread before the first real one, with loops and engines of its
 * own, so that V8 has compiled what a request runs through when the first one comes.
 *
 * What was compiled is thrown away when an assumption in it turns out wrong. So first some short lives
 * of a disk show what real ones will: different memories and files, a refused interrupt, memory
 * that goes; and more than one of everything that is made anew for each. The last life, in which the
 * code gets hot, never ends: code also goes when the shapes of the objects it was made for become
 * garbage, so those objects are `kept`, without memory or descriptors behind them.
 */
export class Rehearsal {
  readonly kept: unknown[] = [];
  readonly #addon: Addon;

  constructor(addon: Addon) {
    this.#addon = addon;
  }

  /**
   * Yields every few milliseconds; may be ended there. Throws the system's errors, and then as at any
   * end, nothing is left open.
   */
  *run(tables: WorkerTables, options: ReactorOptions): Generator<void, void> {
    const deadline = performance.now() + LIMIT_MS;
    const image = this.#addon.memfd('vduse-rehearsal-disk', DISK_BYTES);
    try {
      // Reads and writes anywhere, knows RWF_NOWAIT as tmpfs (the image) doesn't, takes no memory.
      const zero = openSync('/dev/zero', 'r+');
      // Its reads give nothing, as those of what is not in the page cache at first.
      const nothing = openSync('/dev/null', 'r+');
      try {
        const stage = { addon: this.#addon, tables, options };
        const lives = [
          ['table', image.fd, image.fd],
          ['found', zero, undefined],
          ['searched', nothing, undefined],
          // V8 takes notes of what it sees only from a function's tenth call or so on.
          ['table', image.fd, undefined],
          ['found', nothing, image.fd],
        ] as const;
        for (const [memory, fd, mapped] of lives) {
          const life = new RehearsalLife(stage, {
            memory,
            fd,
            mapped,
            // As a tmpfs, which the image is on.
            writtenBack: fd !== image.fd,
            flushes: fd === image.fd,
            twoRegions: true,
          });
          try {
            life.serve(SHORT, 1);
            yield;
            life.serve(SHORT, 4);
            life.end();
          } finally {
            life.close();
          }
          yield;
        }
        // As most disks are: V8 puts into one piece what runs often, and there is only so much room.
        const last = new RehearsalLife(stage, {
          memory: 'table',
          fd: zero,
          mapped: image.fd,
          writtenBack: true,
          flushes: false,
          twoRegions: false,
        });
        try {
          this.kept.push(last.shapes);
          for (let done = 0; done < SINGLE + BATCHED; done += SLICE) {
            if (performance.now() > deadline) break;
            last.serve(SLICE, done < SINGLE ? 1 : DEPTH);
            yield;
          }
        } finally {
          last.close();
        }
      } finally {
        closeSync(zero);
        closeSync(nothing);
      }
    } finally {
      image.close();
    }
  }
}
