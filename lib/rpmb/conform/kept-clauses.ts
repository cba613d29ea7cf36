import { createHash } from 'node:crypto';
import { BLOCK_BYTES } from '../frame.ts';
import { type Clause, clause, SECTION } from './clause.ts';
import { Broken, NotShown, type Probe } from './probe.ts';

/** What a run leaves behind for the next, in the device and in its report. */
export interface ConformNote {
  /** The write counter at the end of the run. */
  readonly counter: number;
  /** The block that holds this note. */
  readonly address: number;
  /** SHA-256 of that block, in hex. */
  readonly digest: string;
}

const MAGIC = 'vduse rpmb conform\n';

/** Where the note is: away from the end and from where the clauses write. */
export function noteAddress(probe: Probe): number {
  return probe.blocks - 3;
}

/** The block that says that the counter is `counter` once it is written. */
export function noteBlock(probe: Probe, counter: number): Uint8Array {
  const block = probe.random(1);
  const text = Buffer.from(`${MAGIC}${counter}\n`);
  block.set(text);
  return block;
}

export function digestOf(block: Uint8Array): string {
  return createHash('sha256').update(block).digest('hex');
}

/** The note of an earlier run in the device, if it has one. */
async function findNote(probe: Probe): Promise<ConformNote | undefined> {
  const address = noteAddress(probe);
  const block = await probe.read(address, 1);
  const text = Buffer.from(block).toString('latin1', 0, MAGIC.length + 11);
  const counter = text.startsWith(MAGIC) ? /^(\d+)\n/.exec(text.slice(MAGIC.length)) : null;
  if (counter === null) return undefined;
  return { counter: Number(counter[1]), address, digest: digestOf(block) };
}

/**
 * What must survive. A run sees that by the note of the run before it, in the device or told by
 * whoever kept the report; whether the device was restarted between is that one's to know.
 */
export function keptClauses(earlier: ConformNote | undefined): readonly Clause[] {
  let found: ConformNote | undefined;
  const note = async (probe: Probe): Promise<ConformNote> => {
    probe.needKeyed();
    found ??= earlier ?? (await findNote(probe));
    if (found === undefined) throw new NotShown('no earlier destructive run left a note');
    return found;
  };
  return [
    clause('kept.key', SECTION.kept, 'the key survives reset and reboot', async (probe) => {
      if (!probe.programmed && earlier !== undefined) {
        throw new Broken('the device had its key when an earlier run ended, and has none now');
      }
      await note(probe);
      if (probe.keyReply === undefined) return;
      throw new Broken('the key had to be programmed again over what an earlier run left');
    }),
    clause(
      'kept.counter',
      SECTION.kept,
      'the write counter survives reset and reboot, and never goes back',
      async (probe) => {
        const { counter } = await note(probe);
        const now = await probe.counter();
        if (now < counter) throw new Broken(`an earlier run left it at ${counter}, it is ${now}`);
      },
    ),
    clause('kept.data', SECTION.kept, 'the data survives reset and reboot', async (probe) => {
      const { address, digest } = await note(probe);
      const block = await probe.read(address, 1);
      if (block.length !== BLOCK_BYTES || digestOf(block) !== digest) {
        throw new Broken(`block ${address} is not as an earlier run left it`);
      }
    }),
  ];
}
