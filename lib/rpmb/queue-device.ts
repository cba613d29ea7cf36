import { Chain, type QueuePort } from '../virtio/index.ts';
import type { RpmbDevice } from './device.ts';
import { FRAME_BYTES, Result } from './frame.ts';

/** What a queue counts, by index into the array it was given. */
export const RpmbCounter = { Requests: 0, Bytes: 1, Errors: 2 } as const;
export const RPMB_COUNTERS = 3;

/**
 * Serves the queue of an RPMB: the frames of a chain's readable part are a request, its answer goes
 * to the writable part, however the driver cut them. A chain that is none (no frame, part of one)
 * is completed with nothing written. Requests are executed strictly in order: while one is being
 * committed, later chains wait.
 */
export class RpmbQueueDevice {
  readonly #device: RpmbDevice;
  readonly #port: QueuePort;
  readonly #counters: Float64Array;
  /** Chains that wait, and at their front the one that is executed. */
  readonly #chains: Chain[] = [];
  readonly #spare: Chain[] = [];
  #draining = false;

  constructor(
    device: RpmbDevice,
    port: QueuePort,
    counters: Float64Array = new Float64Array(RPMB_COUNTERS),
  ) {
    this.#device = device;
    this.#port = port;
    this.#counters = counters;
  }

  begin(chain: Chain): void {
    const kept = this.#spare.pop() ?? new Chain();
    kept.reset(chain.head);
    for (let i = 0; i < chain.count; i++) {
      const writable = i >= chain.readable;
      kept.add(chain.regions[i]!, chain.offsets[i]!, chain.lengths[i]!, writable);
    }
    this.#chains.push(kept);
    this.#drain();
  }

  /** The queue was stopped with nothing in flight. Key, counter, data and last result stay. */
  reset(): void {
    this.#chains.length = 0;
    this.#spare.length = 0;
  }

  #drain(): void {
    if (this.#draining) return;
    this.#draining = true;
    while (this.#chains.length > 0 && !this.#device.busy) this.#execute(this.#chains[0]!);
    this.#draining = false;
  }

  #execute(chain: Chain): void {
    const { request } = this.#device;
    const frames = chain.readableBytes / FRAME_BYTES;
    if (frames === 0 || !Number.isInteger(frames) || isGone(chain)) {
      this.#complete(chain, 0, true);
      return;
    }
    const fits = Math.min(chain.readableBytes, request.length);
    chain.copyOut(0, request, 0, fits);
    if (fits < chain.readableBytes) {
      chain.copyOut(chain.readableBytes - FRAME_BYTES, request, fits - FRAME_BYTES, FRAME_BYTES);
    }
    const room = Math.floor(chain.writableBytes / FRAME_BYTES);
    this.#device.execute(frames, room, (answered, result) => {
      this.#answer(chain, answered, result);
      this.#drain();
    });
  }

  #answer(chain: Chain, frames: number, result: number): void {
    let written = frames * FRAME_BYTES;
    if (isGone(chain)) written = 0;
    if (written > 0) chain.copyIn(0, this.#device.response, 0, written);
    this.#counters[RpmbCounter.Bytes]! += chain.readableBytes + written;
    this.#complete(chain, written, result !== Result.Ok);
  }

  /** `chain` is the front one. */
  #complete(chain: Chain, written: number, error: boolean): void {
    this.#counters[RpmbCounter.Requests]!++;
    if (error) this.#counters[RpmbCounter.Errors]!++;
    this.#chains.shift();
    // Its regions may be unmapped from here on.
    const { head } = chain;
    chain.reset(head);
    chain.regions.length = 0;
    this.#spare.push(chain);
    this.#port.complete(head, written);
  }
}

/** Memory that was unmapped under the chain; its views have no bytes any more. */
function isGone(chain: Chain): boolean {
  for (let i = 0; i < chain.count; i++) {
    if (chain.regions[i]!.u8.length === 0) return true;
  }
  return false;
}
