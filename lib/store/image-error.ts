export type ImageErrorCode =
  | 'ERR_VDUSE_IMAGE_MISSING'
  | 'ERR_VDUSE_IMAGE_KIND'
  | 'ERR_VDUSE_IMAGE_PERMISSION'
  | 'ERR_VDUSE_IMAGE_READ_ONLY'
  | 'ERR_VDUSE_IMAGE_IN_USE'
  | 'ERR_VDUSE_IMAGE_EMPTY'
  | 'ERR_VDUSE_IMAGE_SIZE'
  | 'ERR_VDUSE_IMAGE_DIRECT'
  | 'ERR_VDUSE_IMAGE_BLOCK_SIZE'
  | 'ERR_VDUSE_IMAGE_SYSTEM';

/** An image that cannot be served. The message reads `what: why (what to do)`. */
export class ImageError extends Error {
  readonly code: ImageErrorCode;
  override readonly name = 'ImageError';

  /** `code` without its common beginning. */
  constructor(code: string, path: string, why: string, remedy: string, cause?: unknown) {
    super(`${path}: ${why} (${remedy})`, cause === undefined ? undefined : { cause });
    this.code = `ERR_VDUSE_IMAGE_${code}` as ImageErrorCode;
  }
}

export function inUse(path: string, why: string): ImageError {
  return new ImageError('IN_USE', path, why, 'stop that first; only read-only servers share one');
}

export function readOnlyError(path: string, why: string, cause?: unknown): ImageError {
  const remedy = 'serve it with --read-only, or give this user write access';
  return new ImageError('READ_ONLY', path, why, remedy, cause);
}

export function directError(path: string, why: string, cause?: unknown): ImageError {
  return new ImageError('DIRECT', path, why, 'serve it without --direct', cause);
}

export function creationError(path: string, error: unknown): ImageError {
  const folder = 'choose a folder this user can write to';
  switch (codeOf(error)) {
    case 'ENOENT':
    case 'ENOTDIR':
      return new ImageError(
        'MISSING',
        path,
        'its folder does not exist',
        'create that first',
        error,
      );
    case 'EEXIST':
      return new ImageError('MISSING', path, 'a link to nothing', 'remove the link first', error);
    case 'EACCES':
    case 'EPERM':
      return new ImageError('PERMISSION', path, 'no permission to create it', folder, error);
    case 'EROFS':
      return new ImageError('PERMISSION', path, 'its file system is read-only', folder, error);
    default:
      return systemError(path, 'cannot be created', error);
  }
}

/** Of stat and open. `readable`: only the writing was refused. */
export function openError(path: string, error: unknown, readable: boolean): ImageError {
  switch (codeOf(error)) {
    case 'EACCES':
    case 'EPERM':
      if (readable) return readOnlyError(path, 'no permission to write to it', error);
      return new ImageError(
        'PERMISSION',
        path,
        'no permission to read it',
        'let this user read the file and enter its folders',
        error,
      );
    case 'EROFS':
      return readOnlyError(path, 'it is on read-only storage', error);
    case 'EBUSY':
      return inUse(path, 'the device is mounted or in use');
    case 'ETXTBSY':
      return inUse(path, 'it is a running program or swap space');
    case 'ENOTDIR':
      return new ImageError(
        'MISSING',
        path,
        'part of the path is no folder',
        'check the path',
        error,
      );
    case 'ENXIO':
    case 'ENODEV':
    case 'ENOMEDIUM':
      return kindError(path, 'a device with nothing behind it', error);
    default:
      return systemError(path, 'cannot be opened', error);
  }
}

export function kindError(path: string, what: string, cause?: unknown): ImageError {
  const why = `is ${what}, not a disk image`;
  return new ImageError('KIND', path, why, 'give a regular file or a block device', cause);
}

export function systemError(path: string, what: string, error: unknown): ImageError {
  const why = `${what}: ${systemWord(error)}`;
  return new ImageError('SYSTEM', path, why, 'check the path and its file system', error);
}

export function codeOf(error: unknown): string | undefined {
  return (error as NodeJS.ErrnoException).code;
}

/** `ENOSPC: no space left on device`, without Node's repetition of call and path. */
export function systemWord(error: unknown): string {
  return (error as Error).message.replace(/, [a-z0-9_]+( '.*')?$/, '');
}
