import t from 'tap';
import { RpmbClient } from '../../lib/rpmb/client.ts';
import { parseConfig, rpmbConfig } from '../../lib/rpmb/config.ts';
import { type Exchange, exchangeWith, parseTarget } from '../../lib/rpmb/endpoint.ts';
import { FRAME_BYTES, FrameField, MAX_COUNTER, typeOf } from '../../lib/rpmb/frame.ts';
import { signFrames } from '../../lib/rpmb/mac.ts';
import { ReplyError } from '../../lib/rpmb/reply.ts';
import {
  Bench,
  concat,
  KEY,
  makeState,
  OTHER_KEY,
  pattern,
  SMALL_BLOCKS,
  system,
} from './harness.ts';
import { Model } from './model.ts';

const KEYED = makeState({ key: KEY, maxWriteBlocks: 4, maxReadBlocks: 3 });

/** A client, and what it sent. `between` may change replies. */
function connect(
  bench: Bench,
  between: (reply: Uint8Array, request: Uint8Array) => Uint8Array = (reply) => reply,
) {
  const sent: Uint8Array[] = [];
  const device = exchangeWith(bench.device);
  const exchange: Exchange = async (request, room) => {
    sent.push(request.slice());
    return between(await device(request, room), request);
  };
  const limits = bench.layout;
  const { getRandom } = system;
  return { sent, client: new RpmbClient({ name: 'unix:r.sock', limits, exchange, getRandom }) };
}

async function failure(work: Promise<unknown>): Promise<ReplyError> {
  try {
    await work;
  } catch (error) {
    if (!(error instanceof ReplyError)) throw error;
    if (!/^unix:r\.sock: [^\n]+ \([^\n]+\)$/.test(error.message)) throw new Error(error.message);
    return error;
  }
  throw new Error('it worked');
}

t.test('program, write, read, in pieces that the device takes', async (t) => {
  const bench = new Bench(makeState({ maxWriteBlocks: 4, maxReadBlocks: 3 }));
  const { client, sent } = connect(bench);
  await client.programKey(KEY);
  t.equal(await client.readCounter(KEY), 0);
  const data = pattern(10, 4);
  const kept: Uint8Array[] = [];
  const onRequest = (frames: Uint8Array) => kept.push(frames.slice());
  const before = sent.length;
  t.equal(await client.writeBlocks(KEY, 5, data, { onRequest }), 3, 'of 4, 4 and 2 blocks');
  t.same(kept, sent.slice(before + 1), 'the frames as they were sent');
  t.same(await client.readBlocks(5, 10, KEY), data);
  t.same(await client.readBlocks(5, 10), data, 'without a key nothing is verified, but read');
  t.equal(await client.readCounter(), 3);
  const again = bench.send(kept[0]!);
  t.equal(again[FrameField.Result + 1], 3, 'sent again: COUNT_FAILURE');
});

t.test('every request has a nonce of its own', async (t) => {
  const { client, sent } = connect(new Bench(KEYED.slice()));
  for (let i = 0; i < 20; i++) await client.readCounter(KEY);
  await client.readBlocks(0, 60, KEY);
  const nonces = sent.map((frame) => Buffer.from(frame.subarray(484, 500)).toString('hex'));
  t.equal(new Set(nonces).size, 40);
});

t.test('a device without limits is asked for 32 blocks at most', async (t) => {
  const { client, sent } = connect(
    new Bench(makeState({ key: KEY, maxWriteBlocks: 0, maxReadBlocks: 0 })),
  );
  await client.writeBlocks(KEY, 0, pattern(70, 1));
  t.same(await client.readBlocks(0, 70, KEY), pattern(70, 1));
  t.same(
    sent.map((frames) => frames.length / FRAME_BYTES),
    [1, 33, 33, 7, 1, 1, 1],
  );
});

/** Change a reply and sign it again, as a device that is wrong would. */
function forged(reply: Uint8Array, at: number): Uint8Array {
  const copy = reply.slice();
  copy[at]! ^= 1;
  signFrames(KEY, copy, 0, copy.length / FRAME_BYTES);
  return copy;
}

function flipped(reply: Uint8Array, at: number): Uint8Array {
  const copy = reply.slice();
  copy[at]! ^= 1;
  return copy;
}

t.test('what is wrong with a reply is named', async (t) => {
  const type = FrameField.Type;
  const { Nonce, WriteCounter, Address, BlockCount, KeyMac, Data } = FrameField;
  type Change = (reply: Uint8Array) => Uint8Array;
  const cases: [string, string, number, Change][] = [
    ['counter', 'length', 2, (reply) => reply.slice(1)],
    ['counter', 'length', 2, () => new Uint8Array(0)],
    ['counter', 'length', 2, (reply) => concat(reply, reply)],
    ['counter', 'type', 2, (reply) => forged(reply, type)],
    ['counter', 'mac', 2, (reply) => flipped(reply, KeyMac + 31)],
    ['counter', 'mac', 2, (reply) => flipped(reply, WriteCounter + 3)],
    ['counter', 'nonce', 2, (reply) => forged(reply, Nonce + 15)],
    ['read', 'length', 4, (reply) => reply.slice(0, FRAME_BYTES)],
    ['read', 'mac', 4, (reply) => flipped(reply, Data)],
    ['read', 'nonce', 4, (reply) => forged(reply, FRAME_BYTES + Nonce)],
    ['read', 'address', 4, (reply) => forged(reply, Address + 1)],
    ['read', 'block count', 4, (reply) => forged(reply, BlockCount + 1)],
    ['read', 'result', 4, (reply) => forged(reply, FRAME_BYTES + FrameField.Result + 1)],
    ['write', 'type', 3, (reply) => forged(reply, type)],
    ['write', 'mac', 3, (reply) => flipped(reply, KeyMac)],
    ['write', 'address', 3, (reply) => forged(reply, Address)],
    ['write', 'counter', 3, (reply) => forged(reply, WriteCounter + 3)],
  ];
  for (const [operation, check, requestType, change] of cases) {
    const { client } = connect(new Bench(KEYED.slice()), (reply, request) =>
      typeOf(request, 0) === requestType ? change(reply) : reply,
    );
    const work = {
      counter: () => client.readCounter(KEY),
      read: () => client.readBlocks(0, 2, KEY),
      write: () => client.writeBlocks(KEY, 0, pattern(2, 1)),
    }[operation as 'counter'];
    const error = await failure(work());
    t.equal(error.check, check, `${operation}: ${error.message}`);
    t.equal(error.code, 'ERR_VDUSE_RPMB_REPLY');
    t.match(error.message, `${check} check`);
  }
});

t.test('what the device says no to is told with what to do', async (t) => {
  const said = async (state: Uint8Array, work: (client: RpmbClient) => Promise<unknown>) => {
    const error = await failure(work(connect(new Bench(state.slice())).client));
    t.equal(error.code, 'ERR_VDUSE_RPMB_REFUSED');
    t.equal(error.check, 'result');
    return error.message;
  };
  t.match(await said(makeState(), (client) => client.readCounter(KEY)), /NO_AUTH_KEY.*program-key/);
  t.match(
    await said(KEYED, (client) => client.programKey(OTHER_KEY)),
    /program-key.*WRITE_FAILURE/,
  );
  const ended = makeState({ key: KEY, initialCounter: MAX_COUNTER });
  const write = (client: RpmbClient) => client.writeBlocks(KEY, 0, pattern(1, 1));
  t.match(await said(ended, write), /WRITE_COUNTER_EXPIRED.*only be read/);
  const almost = makeState({ key: KEY, initialCounter: MAX_COUNTER - 1, maxWriteBlocks: 1 });
  const two = (client: RpmbClient) => client.writeBlocks(KEY, 0, pattern(2, 1));
  t.match(await said(almost, two), /after 1 of 2 blocks were written.*EXPIRED/);
});

t.test('another key than the device has', async (t) => {
  const { client } = connect(new Bench(KEYED.slice()));
  const error = await failure(client.writeBlocks(OTHER_KEY, 0, pattern(1, 1)));
  t.equal(error.check, 'mac', 'seen at the counter, before anything is written');
});

t.test('a key is programmed also where its reply has no MAC, and proven', async (t) => {
  const model = new Model({ faults: ['no MAC on the key reply'] });
  const setup = {
    name: 'unix:r.sock',
    limits: parseConfig(model.config, 'model'),
    getRandom: system.getRandom,
  };
  await new RpmbClient({ ...setup, exchange: model.exchange }).programKey(KEY);
  t.same(model.state.key, KEY);
  // Somebody between who answers OK and keeps the key.
  const liar = new Model({ key: OTHER_KEY, faults: ['key can be overwritten'] });
  const exchange: Exchange = (request, room) => {
    const changed = request.slice();
    if (typeOf(request, 0) === 1) changed.set(OTHER_KEY, FrameField.KeyMac);
    return liar.exchange(changed, room);
  };
  const error = await failure(new RpmbClient({ ...setup, exchange }).programKey(KEY));
  t.equal(error.check, 'mac');
});

t.test('the key is wiped from the request that carried it', async (t) => {
  const bench = new Bench(makeState());
  const device = exchangeWith(bench.device);
  const sent: Uint8Array[] = [];
  const client = new RpmbClient({
    name: 'unix:r.sock',
    limits: bench.layout,
    getRandom: system.getRandom,
    exchange: (request, room) => {
      sent.push(request);
      return device(request, room);
    },
  });
  await client.programKey(KEY);
  t.ok(sent[0]!.every((byte) => byte === 0));
});

t.test('ranges that are not there are refused before anything is sent', async (t) => {
  const { client, sent } = connect(new Bench(KEYED.slice()));
  const code = { code: 'ERR_VDUSE_RPMB_ADDRESS' };
  await t.rejects(client.readBlocks(SMALL_BLOCKS, 1), code);
  await t.rejects(client.readBlocks(SMALL_BLOCKS - 1, 2), code);
  await t.rejects(client.readBlocks(0, 0), code);
  await t.rejects(client.readBlocks(-1, 1), code);
  await t.rejects(client.readBlocks(0.5, 1), code);
  await t.rejects(client.writeBlocks(KEY, 0, new Uint8Array(100)), code);
  await t.rejects(client.writeBlocks(KEY, SMALL_BLOCKS, pattern(1, 1)), code);
  await t.rejects(client.programKey(KEY.subarray(1)), /the key: has 31 bytes/);
  t.equal(sent.length, 0);
  t.same(await client.readBlocks(SMALL_BLOCKS - 1, 1, KEY), new Uint8Array(256));
});

t.test('configuration space', async (t) => {
  const limits = { capacityUnits: 0x80, maxWriteBlocks: 2, maxReadBlocks: 255 };
  t.same(rpmbConfig(limits), Uint8Array.of(0x80, 2, 255));
  t.same(parseConfig(rpmbConfig(limits), 'x'), limits);
  t.same(parseConfig(Uint8Array.of(1, 0, 0, 9, 9), 'x').capacityUnits, 1, 'more is none of ours');
  t.throws(() => parseConfig(new Uint8Array(2), 'x'), { code: 'ERR_VDUSE_RPMB_TARGET' });
  t.throws(() => parseConfig(Uint8Array.of(0x81, 1, 1), 'x'), /129 × 128 KiB/);
});

t.test('targets', async (t) => {
  t.same(parseTarget('unix:/run/r.sock'), { kind: 'unix', path: '/run/r.sock' });
  t.same(parseTarget('file:a:b'), { kind: 'file', path: 'a:b' });
  for (const text of ['', 'r.sock', 'unix:', 'file:', '/dev/mmcblk0rpmb', 'tcp:1', ':x']) {
    t.throws(() => parseTarget(text), { code: 'ERR_VDUSE_RPMB_TARGET' }, text);
  }
});
