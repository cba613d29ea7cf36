/** Options that make no sense: the command line's fault (exit status 64). */
export class UsageError extends Error {
  readonly code = 'ERR_VDUSE_USAGE';
  override readonly name = 'UsageError';
}

/** The state directory or a file in it cannot be used. */
export class StateError extends Error {
  readonly code = 'ERR_VDUSE_STATE';
  override readonly name = 'StateError';
}

/** A device that somebody uses was asked to go. */
export class HeldError extends Error {
  readonly code = 'ERR_VDUSE_HELD';
  override readonly name = 'HeldError';
}
