import { chmodSync, chownSync, lstatSync, readFileSync, type Stats, unlinkSync } from 'node:fs';
import type { Addon, OwnedFd } from '../../native/index.ts';

/** `struct sockaddr_un` has 108 bytes for the path and its terminating zero. */
const MAX_PATH = 107;

/** Connections that wait while another front end is served. */
const BACKLOG = 16;

export type SocketErrorCode =
  | 'ERR_VDUSE_SOCKET_PATH'
  | 'ERR_VDUSE_SOCKET_IN_USE'
  | 'ERR_VDUSE_SOCKET_GROUP'
  | 'ERR_VDUSE_SOCKET_FD'
  | 'ERR_VDUSE_SOCKET';

/** A socket that cannot be had; the message says what failed, why, and what to do. */
export class SocketError extends Error {
  readonly code: SocketErrorCode;

  constructor(code: SocketErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'SocketError';
    this.code = code;
  }
}

export interface SocketFileOptions {
  readonly path: string;
  /** Permission bits of the file, as for chmod; who may write to it may connect. */
  readonly mode?: number;
  /** Group of the file: its name or number. */
  readonly group?: string | number;
}

/** A listening socket and its file. */
export class SocketFile {
  readonly path: string;
  readonly socket: OwnedFd;
  readonly #file: Stats;

  private constructor(path: string, socket: OwnedFd) {
    this.path = path;
    this.socket = socket;
    this.#file = lstatSync(path);
  }

  /** Listen; a socket file that nobody listens on is replaced. Throws a SocketError. */
  static listen(addon: Addon, options: SocketFileOptions): SocketFile {
    const { path } = options;
    if (path === '' || path.includes('\0')) {
      throw new SocketError('ERR_VDUSE_SOCKET_PATH', `socket '${path}': not a path`);
    }
    const length = Buffer.byteLength(path);
    if (length > MAX_PATH) {
      throw new SocketError(
        'ERR_VDUSE_SOCKET_PATH',
        `socket ${path}: the path has ${length} bytes, at most ${MAX_PATH} are possible (use a shorter or a relative one)`,
      );
    }
    const group = options.group === undefined ? undefined : groupNumber(options.group);
    removeStale(addon, path);
    // Nobody else gets in before mode and group are what they are meant to be.
    const restricted = options.mode !== undefined || group !== undefined;
    const socket = bind(addon, path, restricted);
    try {
      if (group !== undefined) chownSync(path, -1, group);
      if (options.mode !== undefined) chmodSync(path, options.mode);
      else if (restricted) chmodSync(path, 0o660);
      return new SocketFile(path, socket);
    } catch (cause) {
      socket.close();
      unlinkSync(path);
      throw new SocketError(
        'ERR_VDUSE_SOCKET',
        `socket ${path}: its group or mode can't be set: ${(cause as Error).message} (be a member of the group, or leave it out)`,
        { cause },
      );
    }
  }

  /** Stop listening; the file goes too, unless it is somebody else's by now. */
  close(): void {
    const now = stat(this.path);
    if (now !== undefined && now.dev === this.#file.dev && now.ino === this.#file.ino) {
      unlinkSync(this.path);
    }
    this.socket.close();
  }
}

/** A group's number, from the group file where it is a name. */
function groupNumber(group: string | number): number {
  if (typeof group === 'number' || /^\d+$/.test(group)) return Number(group);
  const line = readFileSync('/etc/group', 'utf8')
    .split('\n')
    .find((entry) => entry.startsWith(`${group}:`));
  const number = line?.split(':')[2];
  if (number === undefined) {
    throw new SocketError(
      'ERR_VDUSE_SOCKET_GROUP',
      `socket group ${group}: /etc/group has no such group (create it, or give its number)`,
    );
  }
  return Number(number);
}

/** Make way: the path must be free, or a socket file without a listener. */
function removeStale(addon: Addon, path: string): void {
  const before = stat(path);
  if (before === undefined) return;
  if (!before.isSocket()) {
    throw new SocketError(
      'ERR_VDUSE_SOCKET_PATH',
      `socket ${path}: a file is there that is no socket (remove it, or choose another path)`,
    );
  }
  if (isLive(addon, path)) {
    throw new SocketError(
      'ERR_VDUSE_SOCKET_IN_USE',
      `socket ${path}: another process listens on it (stop that one, or choose another path)`,
    );
  }
  const now = stat(path);
  if (now?.ino === before.ino && now.dev === before.dev) unlinkSync(path);
}

/** Whether somebody listens. What is not known counts as live: only a refusal proves the contrary. */
function isLive(addon: Addon, path: string): boolean {
  try {
    addon.unixConnect(path).close();
  } catch (error) {
    return (error as { code?: string }).code !== 'ECONNREFUSED';
  }
  return true;
}

function bind(addon: Addon, path: string, restricted: boolean): OwnedFd {
  const mask = restricted ? process.umask(0o177) : undefined;
  try {
    return addon.unixListen(path, BACKLOG);
  } catch (cause) {
    const { code, message } = cause as { code?: string; message: string };
    const hint = HINTS[code ?? ''];
    throw new SocketError(
      code === 'EADDRINUSE' ? 'ERR_VDUSE_SOCKET_IN_USE' : 'ERR_VDUSE_SOCKET_PATH',
      hint === undefined ? `socket ${path}: ${message}` : `socket ${path}: ${hint}`,
      { cause },
    );
  } finally {
    if (mask !== undefined) process.umask(mask);
  }
}

const HINTS: Readonly<Record<string, string>> = {
  ENOENT: 'its folder does not exist (create it)',
  ENOTDIR: 'part of its path is no folder (choose another path)',
  EACCES: 'no permission to create it (choose a folder you may write to)',
  EPERM: 'its file system has no sockets, or forbids it (choose another folder)',
  EROFS: 'its file system is read-only (choose another folder)',
  EADDRINUSE: 'another process has just taken it (choose another path)',
  ENOSPC: 'its file system is full (make room)',
};

function stat(path: string): Stats | undefined {
  try {
    return lstatSync(path);
  } catch (error) {
    // The folder's own trouble is reported by bind.
    if (['ENOENT', 'ENOTDIR', 'EACCES'].includes((error as { code: string }).code))
      return undefined;
    throw error;
  }
}
