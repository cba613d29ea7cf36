import { FRAME_BYTES, RequestType, ResponseType, Result, resultOf } from '../frame.ts';
import { type Clause, clause, SECTION } from './clause.ts';
import { expired } from './key-clauses.ts';
import { Broken, makeFrame, NotShown, type Probe, readFrame, SCRATCH, said } from './probe.ts';

const MANY = 8;

/** GET_WRITE_COUNTER, DATA_READ and RESULT_READ of a device with a key. They change nothing. */
export const READ_CLAUSES: readonly Clause[] = [
  clause(
    'counter.reply',
    SECTION.counter,
    'GET_WRITE_COUNTER answers with the counter, the nonce, a MAC',
    async (probe) => {
      probe.needKeyed();
      const first = await probe.counter();
      await probe.read(SCRATCH, 1);
      const second = await probe.counter();
      if (first !== second) throw new Broken(`reading moved it from ${first} to ${second}`);
    },
  ),
  clause(
    'counter.block-count',
    SECTION.counter,
    'GET_WRITE_COUNTER with a block count other than 1 is GENERAL_FAILURE',
    async (probe) => {
      const key = probe.needKeyed();
      for (const blockCount of [probe.wrongOne, 2]) {
        const frame = makeFrame({ type: RequestType.GetWriteCounter, blockCount });
        const reply = await probe.send(frame);
        const result = await expired(probe, Result.GeneralFailure);
        probe.expect(`block count ${blockCount}`, reply, {
          type: ResponseType.GetCounter,
          result,
          key,
        });
      }
    },
  ),
  clause(
    'read.reply',
    SECTION.read,
    'DATA_READ answers with data, nonce, address, block count, a MAC',
    async (probe) => {
      probe.needKeyed();
      await probe.read(SCRATCH, 1);
      await probe.read(SCRATCH + 1, 1);
    },
  ),
  clause(
    'read.many',
    SECTION.read,
    'DATA_READ of several blocks answers with as many frames, one MAC over all in the last',
    async (probe) => {
      probe.needKeyed();
      const blocks = Math.min(probe.limits.maxReadBlocks || MANY, MANY);
      if (blocks < 2) throw new NotShown('the device reads one block at a time');
      const together = await probe.read(SCRATCH, blocks);
      for (let i = 0; i < blocks; i++) {
        const one = await probe.read(SCRATCH + i, 1);
        if (Buffer.compare(one, together.subarray(i * 256, (i + 1) * 256)) !== 0) {
          throw new Broken(`block ${i} of ${blocks} is another than when it is read alone`);
        }
      }
    },
  ),
  clause('read.last-block', SECTION.frame, 'the last block can be read', async (probe) => {
    probe.needKeyed();
    await probe.read(probe.blocks - 1, 1);
  }),
  clause(
    'read.block-count-zero',
    SECTION.read,
    'DATA_READ of no block is GENERAL_FAILURE',
    async (probe) => {
      probe.needKeyed();
      if (probe.profile.readsRoom) throw new NotShown(`${probe.profile.name} counts otherwise`);
      await refuses(probe, SCRATCH, 0, Result.GeneralFailure);
    },
  ),
  clause(
    'read.block-count-over',
    SECTION.read,
    'DATA_READ of more blocks than max_rd_cnt is GENERAL_FAILURE',
    async (probe) => {
      probe.needKeyed();
      const limit = probe.limits.maxReadBlocks;
      if (limit === 0) throw new NotShown('the device has no limit');
      await refuses(probe, SCRATCH, limit + 1, Result.GeneralFailure);
    },
  ),
  clause(
    'read.address',
    SECTION.read,
    'DATA_READ at or over the end is ADDR_FAILURE',
    async (probe) => {
      probe.needKeyed();
      let shown = 0;
      for (const [address, blocks] of overTheEnd(probe.blocks, probe.limits.maxReadBlocks)) {
        await refuses(probe, address, blocks, Result.AddrFailure);
        shown++;
      }
      if (shown === 0) throw new NotShown('every address there is lies inside');
    },
  ),
  clause(
    'read.order',
    SECTION.read,
    'a wrong block count is told before a wrong address',
    async (probe) => {
      probe.needKeyed();
      if (probe.profile.readsRoom) throw new NotShown(`${probe.profile.name} counts otherwise`);
      await refuses(probe, 0xffff, 0, Result.GeneralFailure);
    },
  ),
  clause(
    'result.block-count',
    SECTION.result,
    'RESULT_READ with a block count other than 1 is GENERAL_FAILURE',
    async (probe) => {
      probe.needKeyed();
      for (const blockCount of [probe.wrongOne, 2]) {
        const frame = makeFrame({ type: RequestType.ResultRead, blockCount });
        const reply = await probe.send(frame);
        const result = await expired(probe, Result.GeneralFailure);
        if (reply.length === FRAME_BYTES && resultOf(reply, 0) === result) continue;
        throw new Broken(`block count ${blockCount}: ${said(reply)}`);
      }
    },
  ),
];

async function refuses(
  probe: Probe,
  address: number,
  blocks: number,
  refusal: number,
): Promise<void> {
  const room = Math.max(1, blocks);
  const reply = await probe.send(readFrame(address, blocks), room);
  const result = await expired(probe, refusal);
  const type = ResponseType.DataRead;
  probe.expect(`DATA_READ of ${blocks} at ${address}`, reply, { type, frames: room, result });
}

/** Ranges that are not wholly inside and that 16 bits can say. */
export function overTheEnd(blocks: number, limit: number): [address: number, blocks: number][] {
  const ranges: [number, number][] = [];
  if (blocks <= 0xffff) ranges.push([blocks, 1], [0xffff, 1]);
  if (limit !== 1) ranges.push([blocks - 1, 2]);
  return ranges;
}
