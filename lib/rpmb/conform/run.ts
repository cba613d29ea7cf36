import type { RpmbLimits } from '../config.ts';
import type { Exchange } from '../endpoint.ts';
import { FRAME_BYTES, RequestType, Result, resultOf } from '../frame.ts';
import { type Profile, VIRTIO_PROFILE } from '../rules.ts';
import type { GetRandom } from '../state/wrap.ts';
import { CHAIN_CLAUSES } from './chain-clauses.ts';
import type { Clause } from './clause.ts';
import { type ConformNote, digestOf, keptClauses, noteAddress, noteBlock } from './kept-clauses.ts';
import { KEY_CLAUSES, SECRET_CLAUSE } from './key-clauses.ts';
import { Broken, Gone, makeFrame, NotShown, Probe, readFrame, SCRATCH } from './probe.ts';
import { READ_CLAUSES } from './read-clauses.ts';
import { EXPIRY_CLAUSES, REFUSAL_CLAUSES, WRITE_CLAUSES } from './write-clauses.ts';

export interface ConformOptions {
  /** The device, for the report. */
  readonly name: string;
  readonly exchange: Exchange;
  readonly limits: RpmbLimits;
  readonly getRandom: GetRandom;
  /** The device's key, or the one to program. Without it, little can be shown. */
  readonly key?: Uint8Array;
  /** Program the key, write over any block, use up a counter near its end. */
  readonly destructive?: boolean;
  readonly profile?: Profile;
  /** How long a chain may take (5000). */
  readonly timeoutMs?: number;
  /** What an earlier run's report says it left. */
  readonly earlier?: ConformNote;
  /** Told each clause's outcome as it is known. */
  readonly onClause?: (report: ClauseReport) => void;
}

export interface ClauseReport {
  readonly id: string;
  readonly source: string;
  readonly text: string;
  readonly destructive: boolean;
  readonly outcome: 'holds' | 'broken' | 'not shown';
  /** What was seen of a broken one; why one is not shown. */
  readonly why?: string;
}

export interface ConformReport {
  readonly name: string;
  readonly profile: string;
  readonly destructive: boolean;
  readonly holds: number;
  readonly broken: number;
  readonly notShown: number;
  readonly clauses: readonly ClauseReport[];
  /** What this run left behind, for the next one to look for. */
  readonly note?: ConformNote;
  /** What may be wrong with the question rather than with the device. */
  readonly hint?: string;
}

/** All clauses, in the order they are tried. */
export function conformClauses(earlier?: ConformNote): readonly Clause[] {
  return [
    ...KEY_CLAUSES,
    ...keptClauses(earlier),
    ...READ_CLAUSES,
    ...WRITE_CLAUSES,
    ...REFUSAL_CLAUSES,
    ...EXPIRY_CLAUSES,
    ...CHAIN_CLAUSES,
    SECRET_CLAUSE,
  ];
}

/**
 * Try an RPMB clause by clause. What breaks a clause is in the report; nothing is thrown for it. A
 * device that stops answering ends the run: what was not tried is not shown.
 */
export async function conform(options: ConformOptions): Promise<ConformReport> {
  const run = new Run(options);
  await run.begin();
  for (const clause of conformClauses(options.earlier)) {
    // The note is the last write, before the chains that a faulty device does not survive.
    if (clause === CHAIN_CLAUSES[0]) await run.leaveNote();
    await run.try(clause);
  }
  return run.report();
}

class Run {
  readonly #options: ConformOptions;
  readonly #probe: Probe;
  readonly #reports: ClauseReport[] = [];
  #gone: string | undefined;
  #note: ConformNote | undefined;

  constructor(options: ConformOptions) {
    this.#options = options;
    this.#probe = new Probe({
      exchange: options.exchange,
      limits: options.limits,
      profile: options.profile ?? VIRTIO_PROFILE,
      key: options.key,
      getRandom: options.getRandom,
      timeoutMs: options.timeoutMs ?? 5000,
    });
  }

  /** See whether there is a key: a device that has none says so, to one question or the other. */
  async begin(): Promise<void> {
    const questions = [
      makeFrame({ type: RequestType.GetWriteCounter, blockCount: 1 }),
      readFrame(SCRATCH, 1),
    ];
    this.#probe.programmed = true;
    for (const question of questions) {
      try {
        const reply = await this.#probe.send(question);
        const without = reply.length >= FRAME_BYTES && resultOf(reply, 0) === Result.NoAuthKey;
        if (without) this.#probe.programmed = false;
      } catch (error) {
        if (error instanceof Gone) this.#gone = error.message;
        else if (!(error instanceof Broken)) throw error;
      }
    }
  }

  async try(clause: Clause): Promise<void> {
    const { id, source, text, destructive } = clause;
    const told = { id, source, text, destructive, ...(await this.#outcome(clause)) };
    this.#reports.push(told);
    this.#options.onClause?.(told);
  }

  /** Leave behind what the next run looks for, where the device lets us. */
  async leaveNote(): Promise<void> {
    const probe = this.#probe;
    if (this.#options.destructive !== true || this.#gone !== undefined) return;
    try {
      probe.needKeyed();
      const counter = (await probe.needWrites(1)) + 1;
      const address = noteAddress(probe);
      const block = noteBlock(probe, counter);
      await probe.write(counter - 1, address, block);
      this.#note = { counter, address, digest: digestOf(block) };
    } catch (error) {
      if (error instanceof Gone) this.#gone = error.message;
      else if (!(error instanceof Broken || error instanceof NotShown)) throw error;
    }
  }

  report(): ConformReport {
    const count = (outcome: string) =>
      this.#reports.filter((clause) => clause.outcome === outcome).length;
    return {
      name: this.#options.name,
      profile: this.#probe.profile.name,
      destructive: this.#options.destructive ?? false,
      holds: count('holds'),
      broken: count('broken'),
      notShown: count('not shown'),
      clauses: this.#reports,
      ...(this.#note === undefined ? {} : { note: this.#note }),
      ...(this.#keySeemsWrong()
        ? { hint: 'no MAC fits this key: is it the key of the device?' }
        : {}),
    };
  }

  #keySeemsWrong(): boolean {
    const counter = this.#reports.find(({ id }) => id === 'counter.reply');
    return counter?.why?.includes(': mac: ') ?? false;
  }

  async #outcome(clause: Clause): Promise<Pick<ClauseReport, 'outcome' | 'why'>> {
    if (this.#gone !== undefined) {
      return { outcome: 'not shown', why: `the device is gone: ${this.#gone}` };
    }
    if (clause.destructive && this.#options.destructive !== true) {
      return { outcome: 'not shown', why: 'needs --destructive' };
    }
    try {
      await clause.check(this.#probe);
      return { outcome: 'holds' };
    } catch (error) {
      if (error instanceof NotShown) return { outcome: 'not shown', why: error.message };
      if (error instanceof Broken) return { outcome: 'broken', why: error.message };
      if (!(error instanceof Gone)) throw error;
      this.#gone = error.message;
      return { outcome: 'broken', why: `the chain did not come back: ${error.message}` };
    }
  }
}
