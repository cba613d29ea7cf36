import {
  accessSync,
  closeSync,
  constants,
  fstatSync,
  fsyncSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  type Stats,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { StateError } from './errors.ts';

/** A state file is small; anything larger is not ours. */
const MAX_STATE_BYTES = 1 << 20;

/**
 * Where a daemon keeps what a later one needs. The first of: what was asked for, $VDUSE_STATE_DIR,
 * $RUNTIME_DIRECTORY (systemd), /run/vduse, $XDG_RUNTIME_DIR/vduse. Undefined when none can be had:
 * the daemon then serves, and cannot be restarted under its driver.
 */
export function findStateDirectory(
  asked: string | undefined,
  environment: NodeJS.ProcessEnv = process.env,
): StateDirectory | undefined {
  const named =
    asked ??
    environment['VDUSE_STATE_DIR'] ??
    // systemd lists several, separated by colons.
    environment['RUNTIME_DIRECTORY']?.split(':')[0];
  if (named) return StateDirectory.open(named);
  const { XDG_RUNTIME_DIR } = environment as { XDG_RUNTIME_DIR?: string };
  for (const path of ['/run/vduse', XDG_RUNTIME_DIR ? join(XDG_RUNTIME_DIR, 'vduse') : '']) {
    if (path === '') continue;
    try {
      return StateDirectory.open(path);
    } catch {
      // Not writable for this user: the next one may be.
    }
  }
  return undefined;
}

/** A directory of mode 0700 of ours, with one JSON file a device. */
export class StateDirectory {
  readonly path: string;

  private constructor(path: string) {
    this.path = path;
  }

  /** Make it if it is missing. Throws a StateError when it cannot be used, or others could write there. */
  static open(path: string): StateDirectory {
    try {
      const stat = madeOrThere(path);
      if (!stat.isDirectory()) {
        throw new StateError(
          `state directory ${path}: not a directory (give another with --state-dir)`,
        );
      }
      if (stat.uid !== process.geteuid!() || (stat.mode & 0o022) !== 0) {
        throw new StateError(
          `state directory ${path}: others could write there (chown it to this user and chmod 0700, or give another with --state-dir)`,
        );
      }
      accessSync(path, constants.W_OK | constants.X_OK);
    } catch (error) {
      if (error instanceof StateError) throw error;
      throw new StateError(
        `state directory ${path}: ${systemWords(error)} (give one of this user with --state-dir)`,
        { cause: error },
      );
    }
    return new StateDirectory(path);
  }

  /** The path of a state file, for messages. */
  file(name: string): string {
    return join(this.path, `${name}.json`);
  }

  /** The content of a state file, or undefined where there is none. */
  read(name: string): unknown {
    const path = this.file(name);
    let fd: number;
    try {
      // O_NONBLOCK: a pipe of that name must not make us wait for a writer.
      fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    } catch (error) {
      if ((error as { code?: string }).code === 'ENOENT') return undefined;
      throw new StateError(`state file ${path}: ${systemWords(error)} (remove it)`, {
        cause: error,
      });
    }
    try {
      const stat = fstatSync(fd);
      if (!stat.isFile() || stat.uid !== process.geteuid!() || stat.size > MAX_STATE_BYTES) {
        throw new StateError(`state file ${path}: not written by this program (remove it)`);
      }
      return JSON.parse(readFileSync(fd, 'utf8'));
    } catch (error) {
      if (error instanceof StateError) throw error;
      throw new StateError(`state file ${path}: damaged: ${(error as Error).message} (remove it)`, {
        cause: error,
      });
    } finally {
      closeSync(fd);
    }
  }

  /** Replace a state file as a whole: a reader sees the old one or the new one. */
  write(name: string, content: unknown): void {
    const path = this.file(name);
    const temporary = `${path}.new`;
    try {
      this.#unlink(temporary);
      const fd = openSync(
        temporary,
        constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW,
        0o600,
      );
      try {
        writeSync(fd, `${JSON.stringify(content)}\n`);
        fsyncSync(fd);
      } finally {
        closeSync(fd);
      }
      renameSync(temporary, path);
    } catch (error) {
      throw new StateError(`state file ${path}: ${systemWords(error)}`, { cause: error });
    }
  }

  remove(name: string): void {
    this.#unlink(this.file(name));
  }

  #unlink(path: string): void {
    try {
      unlinkSync(path);
    } catch (error) {
      if ((error as { code?: string }).code !== 'ENOENT') throw error;
    }
  }
}

/** What is at `path`; a directory where there was nothing. */
function madeOrThere(path: string): Stats {
  const there = lstatSync(path, { throwIfNoEntry: false });
  if (there !== undefined) return there;
  mkdirSync(path, { recursive: true, mode: 0o700 });
  return lstatSync(path);
}

/** The kernel's words without the call and path that Node adds. */
function systemWords(error: unknown): string {
  const { message } = error as Error;
  return /^[A-Z0-9]+: ([^,]+)/.exec(message)?.[1] ?? message;
}
