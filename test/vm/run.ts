import { fileURLToPath } from 'node:url';
import type { Test } from 'tap';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));

export type Kernel = '6.12' | '7.2';

export interface VmRun {
  readonly name: string;
  /** A program of test/vm/guest and its arguments; it speaks TAP. */
  readonly program: readonly [string, ...string[]];
  readonly kernel?: Kernel;
  /** Further options of tools/vm. */
  readonly options?: readonly string[];
  /** Seconds the machine may take. */
  readonly timeout?: number;
}

/** Run a guest program in the test machine; its test points become a subtest. */
export async function inMachine(t: Test, run: VmRun): Promise<void> {
  const { kernel = '6.12', options = [], timeout = 600 } = run;
  const [program, ...args] = run.program;
  const name = `${run.name} (Linux ${kernel})`;
  t.setTimeout(timeout * 1000 + 60_000);
  await t.spawn(
    'tools/vm',
    [
      ...['--kernel', kernel, '--timeout', String(timeout), ...options],
      ...['--', 'node', `test/vm/guest/${program}`, ...args],
    ],
    { cwd: ROOT, timeout: timeout * 1000 + 30_000 },
    name,
  );
}
