/** Codes of what goes wrong between us and VDUSE. */
export type VduseErrorCode =
  | 'ERR_VDUSE_UNAVAILABLE'
  | 'ERR_VDUSE_PERMISSION'
  | 'ERR_VDUSE_NAME'
  | 'ERR_VDUSE_NAME_TAKEN'
  | 'ERR_VDUSE_LEFT_BEHIND'
  | 'ERR_VDUSE_DEVICE_ID'
  | 'ERR_VDUSE_ATTACHED'
  | 'ERR_VDUSE_GIVEN_UP'
  | 'ERR_VDUSE_NO_DEVICE';

/** A VDUSE device that cannot be had; the message says what failed, why, and what to do. */
export class VduseError extends Error {
  readonly code: VduseErrorCode;

  constructor(code: VduseErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'VduseError';
    this.code = code;
  }
}

/** A message was not answered in time: from then on the kernel refuses every call on the device. */
export function givenUp(name: string, cause: unknown): VduseError {
  return new VduseError(
    'ERR_VDUSE_GIVEN_UP',
    `${name}: the kernel gave the device up, for a message was not answered in time (remove it, then serve again: vdpa dev del ${name}; vduse destroy ${name})`,
    { cause },
  );
}

export function noDevice(name: string, cause?: unknown): VduseError {
  return new VduseError(
    'ERR_VDUSE_NO_DEVICE',
    `${name}: no VDUSE device of that name ("vduse list" shows those there are)`,
    { cause },
  );
}
