import type { GuestMemory } from './guest-memory.ts';
import { PackedQueue } from './packed-queue.ts';
import { SplitQueue } from './split-queue.ts';
import type { QueueLayout, Virtqueue } from './virtqueue.ts';

/**
 * Build the queue that `layout` describes. Its ring is resolved once, here: build it anew when
 * memory it stands in has changed. Throws a VirtqueueError (code ERR_VDUSE_RING) when the ring is
 * misaligned, not wholly mapped or not accessible.
 */
export function createQueue(memory: GuestMemory, layout: QueueLayout): Virtqueue {
  return layout.packed ? new PackedQueue(memory, layout) : new SplitQueue(memory, layout);
}
