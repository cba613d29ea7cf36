/** What can be wrong, without the common `ERR_VDUSE_RPMB_`. */
export type RpmbErrorCode =
  // The state file.
  | 'MISSING'
  | 'EXISTS'
  | 'KIND'
  | 'PERMISSION'
  | 'MODE'
  | 'IN_USE'
  | 'FOREIGN'
  | 'NEWER'
  | 'SIZE'
  | 'DAMAGED'
  | 'OPTIONS'
  | 'SYSTEM'
  | 'WRAP_KEY'
  | 'PROVISIONED'
  // A key file.
  | 'KEY_FILE'
  // A client's dealings with a device.
  | 'TARGET'
  | 'FILE'
  | 'ADDRESS'
  | 'REPLY'
  | 'REFUSED';

/** An RPMB that cannot be made, opened or believed. The message reads `what: why (what to do)`. */
export class RpmbError extends Error {
  readonly code: `ERR_VDUSE_RPMB_${RpmbErrorCode}`;
  override readonly name: string = 'RpmbError';

  constructor(code: RpmbErrorCode, what: string, why: string, remedy: string, cause?: unknown) {
    super(`${what}: ${why} (${remedy})`, cause === undefined ? undefined : { cause });
    this.code = `ERR_VDUSE_RPMB_${code}`;
  }
}

export function codeOf(error: unknown): string {
  return (error as NodeJS.ErrnoException).code ?? '';
}

/** What the system said, without the path that the message begins with anyway. */
export function systemWord(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  return code ?? message;
}

export function systemError(path: string, why: string, error: unknown): RpmbError {
  const remedy = 'check the file system and its log';
  return new RpmbError('SYSTEM', path, `${why}: ${systemWord(error)}`, remedy, error);
}
