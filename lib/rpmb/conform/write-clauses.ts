import { makeWrite } from '../client.ts';
import {
  BLOCK_BYTES,
  FRAME_BYTES,
  FrameField,
  getU16,
  MAC_BYTES,
  MAX_COUNTER,
  putU16,
  putU32,
  RequestType,
  ResponseType,
  Result,
} from '../frame.ts';
import { signFrames } from '../mac.ts';
import { type Clause, destructive, SECTION } from './clause.ts';
import { Broken, makeFrame, NotShown, type Probe, SCRATCH } from './probe.ts';
import { overTheEnd } from './read-clauses.ts';

const MANY = 8;

/** Without the RESULT_READ behind it. */
const silent = (request: Uint8Array) => request.subarray(0, -FRAME_BYTES);

/** The counter of a device that still takes writes, so that a refusal has its own reason. */
async function usable(probe: Probe): Promise<number> {
  probe.needKeyed();
  const counter = await probe.counter();
  if (counter === MAX_COUNTER) throw new NotShown('the counter has reached its end');
  return counter;
}

/** Blocks of one write in the clauses about several. */
function several(probe: Probe, least = 2): number {
  const blocks = Math.min(probe.limits.maxWriteBlocks || MANY, MANY);
  if (blocks < least) throw new NotShown('the device writes one block at a time');
  return blocks;
}

async function expectData(probe: Probe, address: number, data: Uint8Array): Promise<void> {
  for (let i = 0; i * BLOCK_BYTES < data.length; i++) {
    const block = await probe.read(address + i, 1);
    if (Buffer.compare(block, data.subarray(i * BLOCK_BYTES, (i + 1) * BLOCK_BYTES)) !== 0) {
      throw new Broken(`block ${address + i} does not hold what was written there`);
    }
  }
}

/** Writes that must work. */
export const WRITE_CLAUSES: readonly Clause[] = [
  destructive(
    'write.reply',
    SECTION.write,
    'DATA_WRITE answers a RESULT_READ with OK, the counter after it, the address, a MAC',
    async (probe) => {
      probe.needKeyed();
      const counter = await probe.needWrites(1);
      await probe.write(counter, SCRATCH + 1, probe.random(1));
    },
  ),
  destructive(
    'write.data',
    SECTION.write,
    'what DATA_WRITE called OK can be read',
    async (probe) => {
      probe.needKeyed();
      const data = probe.random(1);
      await probe.write(await probe.needWrites(1), SCRATCH, data);
      await expectData(probe, SCRATCH, data);
    },
  ),
  destructive(
    'write.many',
    SECTION.write,
    'several blocks are written all, and no other',
    async (probe) => {
      probe.needKeyed();
      const blocks = several(probe);
      const counter = await probe.needWrites(2);
      const behind = probe.random(1);
      await probe.write(counter, SCRATCH + blocks, behind);
      const data = probe.random(blocks);
      // Whatever it does to the counter is another clause's business.
      await probe.send(makeWrite(probe.key, await probe.counter(), SCRATCH, data));
      await expectData(probe, SCRATCH, data);
      await expectData(probe, SCRATCH + blocks, behind);
    },
  ),
  destructive(
    'write.counter-step',
    SECTION.write,
    'the counter is stepped by 1 a request, whatever its blocks',
    async (probe) => {
      probe.needKeyed();
      const blocks = several(probe);
      const counter = await probe.needWrites(blocks);
      await probe.send(makeWrite(probe.key, counter, SCRATCH, probe.random(blocks)));
      const after = await probe.counter();
      if (after === counter + 1) return;
      throw new Broken(`${blocks} blocks stepped it from ${counter} to ${after}`);
    },
  ),
  destructive('write.last-block', SECTION.frame, 'the last block can be written', async (probe) => {
    probe.needKeyed();
    const data = probe.random(1);
    await probe.write(await probe.needWrites(1), probe.blocks - 1, data);
    await expectData(probe, probe.blocks - 1, data);
  }),
  destructive(
    'write.silent',
    SECTION.result,
    'without a RESULT_READ there is no reply, and the write is done',
    async (probe) => {
      probe.needKeyed();
      const counter = await probe.needWrites(2);
      const data = probe.random(1);
      const noRoom = await probe.send(silent(makeWrite(probe.key, counter, SCRATCH, data)), 0);
      await expectData(probe, SCRATCH, data);
      const next = silent(makeWrite(probe.key, counter + 1, SCRATCH, data));
      const reply = await probe.send(next, 1);
      const written = noRoom.length + reply.length;
      if (written > 0) throw new Broken(`${written} bytes came though no result was asked for`);
    },
  ),
  destructive(
    'result.later',
    SECTION.result,
    'RESULT_READ in a later chain answers for the write before it, done or refused',
    async (probe) => {
      const key = probe.needKeyed();
      const counter = await probe.needWrites(1);
      const write = silent(makeWrite(key, counter, SCRATCH + 2, probe.random(1)));
      const ask = makeFrame({ type: RequestType.ResultRead, blockCount: 1 });
      const type = ResponseType.DataWrite;
      await probe.send(write, 0);
      const done = await probe.send(ask);
      probe.expect('after a write', done, {
        type,
        key,
        counter: counter + 1,
        address: SCRATCH + 2,
      });
      await probe.send(write, 0);
      const refused = await probe.send(ask);
      const result = Result.CountFailure;
      probe.expect('after the same again', refused, { type, key, result, counter: counter + 1 });
    },
  ),
  destructive(
    'write.replay',
    SECTION.write,
    'frames that were taken once are COUNT_FAILURE ever after',
    async (probe) => {
      const key = probe.needKeyed();
      const counter = await probe.needWrites(2);
      const old = makeWrite(key, counter, SCRATCH, probe.random(1));
      await probe.send(old);
      await probe.write(counter + 1, SCRATCH, probe.random(1));
      await probe.refused('frames sent again', old, Result.CountFailure);
    },
  ),
];

/** Writes that must be refused, and change nothing. */
export const REFUSAL_CLAUSES: readonly Clause[] = [
  destructive(
    'write.counter',
    SECTION.write,
    'a counter ahead or behind is COUNT_FAILURE',
    async (probe) => {
      const counter = await usable(probe);
      const wrong = [counter + 1, 0xffffffff, counter - 1].filter(
        (value) => value >= 0 && value <= MAX_COUNTER && value !== counter,
      );
      for (const value of wrong) {
        const write = makeWrite(probe.key, value, SCRATCH, probe.random(1));
        await probe.refused(`counter ${value} at ${counter}`, write, Result.CountFailure);
      }
    },
  ),
  destructive(
    'write.mac',
    SECTION.write,
    'a MAC that is wrong in any byte is AUTH_FAILURE',
    async (probe) => {
      const write = makeWrite(probe.key, await usable(probe), SCRATCH, probe.random(1));
      for (let i = 0; i < MAC_BYTES; i++) {
        write[FrameField.KeyMac + i]! ^= 0x80;
        await probe.refused(`byte ${i} of the MAC wrong`, write, Result.AuthFailure);
        write[FrameField.KeyMac + i]! ^= 0x80;
      }
    },
  ),
  destructive(
    'write.mac-covers',
    SECTION.frame,
    'the MAC is over all fields but stuff and itself: a change of any is AUTH_FAILURE',
    async (probe) => {
      const counter = await usable(probe);
      const fields: [string, number][] = [
        ['first byte of the data', FrameField.Data],
        ['last byte of the data', FrameField.Nonce - 1],
        ['nonce', FrameField.Nonce],
        ['counter', FrameField.WriteCounter + 3],
        ['address', FrameField.Address + 1],
        ['result', FrameField.Result + 1],
      ];
      for (const [name, at] of fields) {
        const write = makeWrite(probe.key, counter, SCRATCH, probe.random(1));
        write[at]! ^= 1;
        await probe.refused(`${name} changed`, write, Result.AuthFailure);
      }
    },
  ),
  destructive(
    'write.mac-frames',
    SECTION.frame,
    'the MAC is over all frames: a change in the first of several is AUTH_FAILURE',
    async (probe) => {
      const counter = await usable(probe);
      const write = makeWrite(probe.key, counter, SCRATCH, probe.random(several(probe)));
      write[FrameField.Data]! ^= 1;
      await probe.refused('data of the first frame changed', write, Result.AuthFailure);
    },
  ),
  destructive(
    'write.block-count-zero',
    SECTION.write,
    'DATA_WRITE of no block is GENERAL_FAILURE',
    async (probe) => {
      const write = signed(probe, await usable(probe), (frame) =>
        putU16(frame, FrameField.BlockCount, 0),
      );
      await probe.refused('block count 0', write, Result.GeneralFailure);
    },
  ),
  destructive(
    'write.block-count-over',
    SECTION.write,
    'DATA_WRITE of more blocks than max_wr_cnt is GENERAL_FAILURE',
    async (probe) => {
      const counter = await usable(probe);
      const limit = probe.limits.maxWriteBlocks;
      if (limit === 0) throw new NotShown('the device has no limit');
      const write = makeWrite(probe.key, counter, SCRATCH, probe.random(limit + 1));
      await probe.refused(`${limit + 1} blocks`, write, Result.GeneralFailure);
    },
  ),
  destructive(
    'write.address',
    SECTION.write,
    'DATA_WRITE at or over the end is ADDR_FAILURE',
    async (probe) => {
      const counter = await usable(probe);
      const ranges = overTheEnd(probe.blocks, probe.limits.maxWriteBlocks);
      for (const [address, blocks] of ranges) {
        const write = makeWrite(probe.key, counter, address, probe.random(blocks));
        await probe.refused(`${blocks} at ${address}`, write, Result.AddrFailure);
      }
      if (ranges.length === 0) throw new NotShown('every address there is lies inside');
    },
  ),
  destructive(
    'write.order',
    SECTION.write,
    'of several faults the first is told: block count, address, MAC, counter',
    async (probe) => {
      const counter = await usable(probe);
      const wrongCounter = counter === 0 ? 1 : counter - 1;
      const over = probe.blocks <= 0xffff;
      const make = (address: number, blockCount: number) => {
        const write = signed(probe, wrongCounter, (frame) => {
          putU16(frame, FrameField.Address, address);
          putU16(frame, FrameField.BlockCount, blockCount);
        });
        write[FrameField.KeyMac]! ^= 1;
        return write;
      };
      await probe.refused('MAC and counter wrong', make(SCRATCH, 1), Result.AuthFailure);
      if (over) await probe.refused('address too', make(0xffff, 1), Result.AddrFailure);
      await probe.refused('and the block count', make(0xffff, 0), Result.GeneralFailure);
    },
  ),
];

/** A write of one block, changed before it is signed. */
function signed(probe: Probe, counter: number, change: (frame: Uint8Array) => void): Uint8Array {
  const write = makeWrite(probe.key, counter, SCRATCH, probe.random(1));
  change(write);
  signFrames(probe.key, write, 0, 1);
  return write;
}

/** The end of the counter: only of a device that is that far. In this order. */
export const EXPIRY_CLAUSES: readonly Clause[] = [
  destructive(
    'expiry.last-write',
    SECTION.kept,
    'the last write takes the counter to 0xFFFFFFFF',
    async (probe) => {
      let counter = await usable(probe);
      if (MAX_COUNTER - counter > LAST_WRITES) {
        throw new NotShown(`the counter is at ${counter}, far from its end`);
      }
      while (counter < MAX_COUNTER) {
        const data = probe.random(1);
        await probe.send(makeWrite(probe.key, counter, SCRATCH, data));
        await expectData(probe, SCRATCH, data);
        const next = await probe.counter();
        if (next !== counter + 1) throw new Broken(`it went from ${counter} to ${next}`);
        counter = next;
      }
    },
  ),
  destructive(
    'expiry.result',
    SECTION.write,
    'a write after that is WRITE_COUNTER_EXPIRED, and changes nothing',
    async (probe) => {
      await needExpired(probe);
      for (const counter of [MAX_COUNTER, 0]) {
        const write = makeWrite(probe.key, counter, SCRATCH, probe.random(1));
        await probe.refused(`a write with counter ${counter}`, write, expiredResult(probe));
      }
    },
  ),
  destructive(
    'expiry.order',
    SECTION.write,
    'an expired counter is told before a wrong address or MAC',
    async (probe) => {
      await needExpired(probe);
      const write = signed(probe, 5, (frame) => {
        putU16(frame, FrameField.Address, 0xffff);
        putU32(frame, FrameField.WriteCounter, 5);
      });
      write[FrameField.KeyMac]! ^= 1;
      if (getU16(write, FrameField.Address) < probe.blocks) {
        putU16(write, FrameField.Address, SCRATCH);
      }
      await probe.refused('address, MAC and counter wrong', write, expiredResult(probe));
    },
  ),
];

/** Few enough to be used up by a test. */
const LAST_WRITES = 4;

async function needExpired(probe: Probe): Promise<void> {
  probe.needKeyed();
  const counter = await probe.counter();
  if (counter !== MAX_COUNTER) throw new NotShown(`the counter is at ${counter}, not at its end`);
}

function expiredResult(probe: Probe): number {
  return probe.profile.expiryBit
    ? Result.WriteFailure | Result.WriteCounterExpired
    : Result.WriteCounterExpired;
}
