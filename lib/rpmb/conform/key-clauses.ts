import { makeWrite } from '../client.ts';
import { FrameField, fieldOf, MAC_BYTES, RequestType, ResponseType, Result } from '../frame.ts';
import { verifyFrames } from '../mac.ts';
import { type Clause, clause, destructive, SECTION } from './clause.ts';
import { Broken, makeFrame, NotShown, type Probe, readFrame, SCRATCH } from './probe.ts';

const counterFrame = (blockCount = 1) =>
  makeFrame({ type: RequestType.GetWriteCounter, blockCount });

const refused = { result: Result.NoAuthKey };

/** A key that is not the device's. */
function otherKey(key: Uint8Array): Uint8Array {
  return key.map((byte) => byte ^ 0x5a);
}

/** Before there is a key, and how it comes in. In this order. */
export const KEY_CLAUSES: readonly Clause[] = [
  clause(
    'no-key.counter',
    SECTION.counter,
    'without a key, GET_WRITE_COUNTER is NO_AUTH_KEY',
    async (probe) => {
      probe.needUnkeyed();
      const reply = await probe.send(counterFrame());
      probe.expect('GET_WRITE_COUNTER', reply, { type: ResponseType.GetCounter, ...refused });
    },
  ),
  clause('no-key.read', SECTION.read, 'without a key, DATA_READ is NO_AUTH_KEY', async (probe) => {
    probe.needUnkeyed();
    const reply = await probe.send(readFrame(SCRATCH, 1));
    probe.expect('DATA_READ', reply, { type: ResponseType.DataRead, ...refused });
  }),
  clause(
    'no-key.first',
    SECTION.read,
    'a missing key is told before a wrong block count or address',
    async (probe) => {
      probe.needUnkeyed();
      const read = await probe.send(readFrame(0xffff, 0));
      probe.expect('DATA_READ of 0', read, { type: ResponseType.DataRead, ...refused });
    },
  ),
  destructive(
    'no-key.write',
    SECTION.write,
    'without a key, DATA_WRITE is NO_AUTH_KEY',
    async (probe) => {
      probe.needUnkeyed();
      const write = makeWrite(new Uint8Array(32), 0, SCRATCH, probe.random(1));
      const reply = await probe.send(write);
      probe.expect('DATA_WRITE', reply, { type: ResponseType.DataWrite, ...refused });
    },
  ),
  destructive(
    'key.block-count',
    SECTION.key,
    'PROGRAM_KEY with a block count other than 1 is GENERAL_FAILURE, and programs nothing',
    async (probe) => {
      probe.needUnkeyed();
      const reply = await probe.sendKey(probe.key, 2);
      const counter = await probe.send(counterFrame());
      const type = ResponseType.ProgramKey;
      probe.expect('the counter after it', counter, { type: ResponseType.GetCounter, ...refused });
      probe.expect('PROGRAM_KEY of 2', reply, { type, result: Result.GeneralFailure });
    },
  ),
  destructive('key.program', SECTION.key, 'PROGRAM_KEY programs the key', async (probe) => {
    probe.needUnkeyed();
    const reply = await probe.sendKey(probe.key);
    probe.expect('PROGRAM_KEY', reply, { type: ResponseType.ProgramKey });
    probe.keyReply = reply;
    probe.programmed = true;
    await probe.counter();
  }),
  destructive('key.mac', SECTION.key, 'the reply to PROGRAM_KEY has a MAC', async (probe) => {
    if (probe.keyReply === undefined) throw new NotShown('no key was programmed in this run');
    if (!probe.profile.keyReplyMac) throw new NotShown(`${probe.profile.name} asks for none`);
    if (verifyFrames(probe.key, probe.keyReply, 0, 1)) return;
    const mac = fieldOf(probe.keyReply, 0, FrameField.KeyMac, MAC_BYTES);
    throw new Broken(mac.every((byte) => byte === 0) ? 'it has none' : 'it is not that of the key');
  }),
  destructive(
    'key.once',
    SECTION.kept,
    'a programmed key cannot be overwritten: WRITE_FAILURE',
    async (probe) => {
      const key = probe.needKeyed();
      const reply = await probe.sendKey(otherKey(key));
      await stillKeyed(probe);
      const result = await expired(probe, Result.WriteFailure);
      probe.expect('a second PROGRAM_KEY', reply, { type: ResponseType.ProgramKey, result });
    },
  ),
];

async function stillKeyed(probe: Probe): Promise<void> {
  try {
    await probe.counter();
  } catch (error) {
    if (!(error instanceof Broken)) throw error;
    throw new Broken(`after another PROGRAM_KEY the key is not the key any more: ${error.message}`);
  }
}

/** What `result` looks like where an expired counter is a bit. */
export async function expired(probe: Probe, result: number): Promise<number> {
  if (!probe.profile.expiryBit) return result;
  return (await probe.counter()) === 0xffffffff ? result | Result.WriteCounterExpired : result;
}

/** At the very end: what the whole run has shown. */
export const SECRET_CLAUSE = clause(
  'key.secret',
  SECTION.kept,
  'the key cannot be read: no reply of this run holds it',
  async (probe) => {
    probe.needKeyed();
    if (probe.keyTold) throw new Broken('a reply held the 32 bytes of the key');
  },
);
