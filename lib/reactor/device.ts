import type { Chain } from '../virtio/index.ts';

/**
 * A device model as a reactor sees it: what serves one queue. Requests come as chains; each ends in
 * exactly one `complete` on the queue's `QueuePort`, now or later, or in its `fail`.
 */
export interface QueueDevice {
  /**
   * Take the request in `chain`. The record is the queue's scratch: read what is needed before
   * returning.
   */
  begin(chain: Chain): void;
  /** The queue was stopped or reset with nothing in flight: forget what it held. */
  reset(): void;
}
