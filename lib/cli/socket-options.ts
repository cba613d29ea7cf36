import { type DeviceOptions, UsageError } from '../daemon/index.ts';

interface SocketArguments {
  'socket-path'?: string | undefined;
  'socket-group'?: string | undefined;
  'socket-mode'?: string | undefined;
  fd?: number | undefined;
}

/** Where to serve vhost-user, or undefined where no socket was asked for. Throws a UsageError. */
export function socketOf(argv: SocketArguments): DeviceOptions['socket'] {
  const { fd, 'socket-path': path, 'socket-group': group, 'socket-mode': mode } = argv;
  if (path === undefined && (group ?? mode) !== undefined) {
    throw new UsageError('--socket-group, --socket-mode: need a socket file (give --socket-path)');
  }
  if (fd !== undefined) {
    if (path !== undefined) {
      throw new UsageError('--fd: not together with --socket-path (leave out one of them)');
    }
    if (!Number.isInteger(fd) || fd < 3) {
      throw new UsageError(`--fd ${fd}: not a descriptor for a socket (give a number from 3 on)`);
    }
    return { fd };
  }
  if (path === undefined) return undefined;
  if (mode !== undefined && !/^0?[0-7]{3}$/.test(mode)) {
    throw new UsageError(`--socket-mode ${mode}: not an octal mode (such as 0660)`);
  }
  return {
    path,
    ...(group === undefined ? {} : { group }),
    ...(mode === undefined ? {} : { mode: Number.parseInt(mode, 8) }),
  };
}
