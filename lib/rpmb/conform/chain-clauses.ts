import { makeWrite } from '../client.ts';
import { FRAME_BYTES, FrameField, putU16, RequestType } from '../frame.ts';
import { signFrames } from '../mac.ts';
import { type Clause, clause, destructive, SECTION } from './clause.ts';
import { Broken, makeFrame, NotShown, type Probe, readFrame, SCRATCH } from './probe.ts';

/**
 * What a hostile driver may send: every chain comes back, nothing is answered OK, and the device
 * serves the next. Last of all, since a device that fails here is gone.
 */
export const CHAIN_CLAUSES: readonly Clause[] = [
  clause(
    'chain.unknown',
    SECTION.chain,
    'a request that does not exist is not answered OK',
    async (probe) => {
      for (const type of [0, 6, 0x0300, 0xffff]) {
        const what = `type 0x${type.toString(16)}`;
        const reply = await probe.send(makeFrame({ type, blockCount: 1 }));
        probe.expectRefusal(what, reply);
        await probe.alive(what);
      }
    },
  ),
  clause(
    'chain.huge-count',
    SECTION.chain,
    'a block count of 65535 is not answered OK',
    async (probe) => {
      const read = await probe.send(readFrame(SCRATCH, 0xffff));
      probe.expectRefusal('DATA_READ of 65535', read);
      await probe.alive('a DATA_READ of 65535');
    },
  ),
  destructive(
    'chain.huge-write',
    SECTION.chain,
    'a block count of 65535, or of more frames than there are, is not answered OK',
    async (probe) => {
      const key = probe.needKeyed();
      const counter = await probe.counter();
      for (const blockCount of [2, 0xffff]) {
        const write = makeWrite(key, counter, SCRATCH, probe.random(1));
        putU16(write, FrameField.BlockCount, blockCount);
        signFrames(key, write, 0, 1);
        const what = `DATA_WRITE of ${blockCount} in one frame`;
        probe.expectRefusal(what, await probe.send(write));
        const after = await probe.counter();
        if (after !== counter) throw new Broken(`${what}: it stepped the counter`);
      }
    },
  ),
  clause(
    'chain.little-room',
    SECTION.chain,
    'a reply that does not fit is not cut short and called OK',
    async (probe) => {
      probe.needKeyed();
      if (probe.limits.maxReadBlocks === 1) throw new NotShown('the device reads one block a time');
      const reply = await probe.send(readFrame(SCRATCH, 2), 1);
      probe.expectRefusal('DATA_READ of 2 with room for 1', reply);
      await probe.alive('a DATA_READ with too little room');
    },
  ),
  clause(
    'chain.part-frame',
    SECTION.chain,
    'a request that is not whole frames comes back',
    async (probe) => {
      for (const bytes of [1, FRAME_BYTES - 1, FRAME_BYTES + 1]) {
        const request = makeFrame({ type: RequestType.GetWriteCounter, blockCount: 1 });
        const longer = new Uint8Array(bytes);
        longer.set(request.subarray(0, bytes));
        await probe.send(longer);
        await probe.alive(`a request of ${bytes} bytes`);
      }
    },
  ),
  clause(
    'chain.no-room',
    SECTION.chain,
    'a request whose reply has no room at all comes back',
    async (probe: Probe) => {
      const request = makeFrame({ type: RequestType.GetWriteCounter, blockCount: 1 });
      await probe.send(request, 0);
      await probe.alive('a request without room');
    },
  ),
];
