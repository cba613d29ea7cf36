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

  constructor(code: ImageErrorCode, path: string, why: string, remedy: string, cause?: unknown) {
    super(`${path}: ${why} (${remedy})`, cause === undefined ? undefined : { cause });
    this.code = code;
  }
}
