/** A size that cannot be understood or served. */
export class SizeError extends RangeError {
  readonly code = 'ERR_VDUSE_SIZE';
  override readonly name = 'SizeError';
}

const UNITS = ['', 'K', 'M', 'G', 'T', 'P'];

/**
 * Bytes from what a person writes: `4096`, `512M`, `1G`, `10GiB`. Units are powers of 1024; `KB` and
 * the like are refused, since half the world means 1000 by them.
 */
export function parseSize(text: string): number {
  const match = /^([0-9]+)(?:([KMGTP])(?:iB)?|B)?$/i.exec(text);
  if (match === null) {
    throw new SizeError(
      `size '${text}': not a whole number with a unit of 1024 (write it like 512M, 10G or 1TiB)`,
    );
  }
  const unit = UNITS.indexOf((match[2] ?? '').toUpperCase());
  const bytes = Number(match[1]) * 1024 ** unit;
  if (bytes === 0) throw new SizeError(`size '${text}': a disk of nothing (give at least 512)`);
  if (!Number.isSafeInteger(bytes)) {
    throw new SizeError(`size '${text}': too large (at most ${Number.MAX_SAFE_INTEGER} bytes)`);
  }
  return bytes;
}
