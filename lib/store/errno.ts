/** The errno values (Linux, x86-64 and arm64 alike) that stores tell apart or report. */
export const Errno = {
  EINTR: 4,
  EIO: 5,
  EAGAIN: 11,
  EROFS: 30,
  ENOSYS: 38,
  EOPNOTSUPP: 95,
  ECANCELED: 125,
} as const;
