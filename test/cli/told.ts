import type { Test } from 'tap';
import { run } from '../../lib/cli/run.ts';

export interface Told {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Run a command line in this process. */
export async function told(t: Test, args: readonly string[]): Promise<Told> {
  const out = t.capture(process.stdout, 'write', () => true);
  const log = t.capture(console, 'log');
  const err = t.capture(process.stderr, 'write', () => true);
  const status = await run(args);
  for (const capture of [out, log, err]) capture.restore();
  const textOf = (calls: { args: unknown[] }[]) =>
    calls.map((call) => String(call.args[0])).join('');
  return { status, stdout: textOf(out()) + textOf(log()), stderr: textOf(err()) };
}
