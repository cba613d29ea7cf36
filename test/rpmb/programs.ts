import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

/** The built programs: they start as a user's do, not through the tests' TypeScript loader. */
const FILES = {
  vduse: fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url)),
  'vhost-user-rpmb': fileURLToPath(new URL('../../dist/cli/vhost-user-rpmb.js', import.meta.url)),
};

export type Program = keyof typeof FILES;

/** Only this: what tap sets for its own processes would load its hooks here as well. */
const env = { PATH: process.env['PATH'] };

/** Milliseconds after which a program hangs. */
const TIMEOUT_MS = 60_000;

export interface Ended {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Run a program to its end in `folder`. */
export function runProgram(
  folder: string,
  program: Program,
  args: readonly string[],
  input: Uint8Array | string = '',
): Ended {
  const { status, stdout, stderr, error } = spawnSync(process.execPath, [FILES[program], ...args], {
    cwd: folder,
    env,
    input,
    encoding: 'utf8',
    timeout: TIMEOUT_MS,
    killSignal: 'SIGKILL',
  });
  if (error !== undefined) throw error;
  return { status, stdout, stderr };
}

/** The same for what must succeed; its output. */
export function mustRun(
  folder: string,
  program: Program,
  args: readonly string[],
  input?: Uint8Array | string,
): string {
  const { status, stdout, stderr } = runProgram(folder, program, args, input);
  if (status !== 0) throw new Error(`${program} ${args.join(' ')}: status ${status}: ${stderr}`);
  return stdout;
}

/** A program that serves until it is stopped or killed. */
export class Daemon {
  /** The line that said that it is ready. */
  readonly ready: string;
  readonly pid: number;
  readonly #child: ChildProcess;
  readonly #ended: Promise<number | string>;
  readonly #lines: string[];

  /** Start it in `folder`; resolves at its first line, rejects with what it said if it ends before. `fds` become its descriptors from 3 on. */
  static async start(
    folder: string,
    program: Program,
    args: readonly string[],
    fds: readonly number[] = [],
  ): Promise<Daemon> {
    const child = spawn(process.execPath, [FILES[program], ...args], {
      cwd: folder,
      env,
      stdio: ['ignore', 'pipe', 'pipe', ...fds],
    });
    const lines: string[] = [];
    let errors = '';
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      errors += text;
    });
    const ended = new Promise<number | string>((resolve) =>
      child.once('close', (status, signal) => resolve(status ?? signal!)),
    );
    const late = setTimeout(() => child.kill('SIGKILL'), TIMEOUT_MS);
    const first = new Promise<void>((resolve) => {
      createInterface({ input: child.stdout! }).on('line', (line) => {
        lines.push(line);
        resolve();
      });
    });
    await Promise.race([first, ended]);
    clearTimeout(late);
    if (lines.length === 0) throw new Error(`${program}: ended with ${await ended}: ${errors}`);
    return new Daemon(child, ended, lines);
  }

  private constructor(child: ChildProcess, ended: Promise<number | string>, lines: string[]) {
    this.#child = child;
    this.#ended = ended;
    this.#lines = lines;
    this.ready = lines[0]!;
    this.pid = child.pid!;
  }

  /** What it printed after it was ready. */
  get lines(): readonly string[] {
    return this.#lines.slice(1);
  }

  /** Resolves when it is gone, with its status or the signal that ended it. */
  get ended(): Promise<number | string> {
    return this.#ended;
  }

  signal(name: 'SIGKILL' | 'SIGTERM'): void {
    this.#child.kill(name);
  }

  /** As a crash of the program would end it. */
  async kill(): Promise<void> {
    this.signal('SIGKILL');
    await this.#ended;
  }

  async stop(): Promise<number | string> {
    this.signal('SIGTERM');
    return this.#ended;
  }
}
