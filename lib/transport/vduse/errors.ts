/** Codes of what goes wrong between us and VDUSE. */
export type VduseErrorCode =
  | 'ERR_VDUSE_UNAVAILABLE'
  | 'ERR_VDUSE_PERMISSION'
  | 'ERR_VDUSE_NAME'
  | 'ERR_VDUSE_NAME_TAKEN'
  | 'ERR_VDUSE_LEFT_BEHIND'
  | 'ERR_VDUSE_DEVICE_ID'
  | 'ERR_VDUSE_ATTACHED'
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
