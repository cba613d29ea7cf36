/**
 * Struct RingCall of native/uring.cc: the words of one io_uring_enter, in memory. As arguments, seven
 * numbers of which each is converted and checked, they cost twice what the rest of a call into the
 * addon does.
 */
export const CALL = {
  /** The ring's descriptor. */
  ring: 0,
  toSubmit: 1,
  minComplete: 2,
  /** IORING_ENTER_… */
  flags: 3,
  /** The most that is waited for `minComplete`; -1: for ever. */
  timeoutUs: 4,
  /** Signals to send before. */
  signalCount: 5,
  /** Out: submitted entries, or -errno. */
  result: 6,
  /** Triples: a descriptor, a queue's index or -1, out: errno. */
  signals: 8,
} as const;

/** Words of a block with room for so many signals. */
export function callWords(signals: number): number {
  return CALL.signals + 3 * signals;
}
