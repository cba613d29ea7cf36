import t from 'tap';
import { FRAME_BYTES, FrameField, MAX_COUNTER, Result } from '../../lib/rpmb/frame.ts';
import { JEDEC_PROFILE } from '../../lib/rpmb/rules.ts';
import { FaultStore } from '../../lib/store/filters/fault.ts';
import { MemoryStore } from '../../lib/testing/memory-store.ts';
import {
  Bench,
  concat,
  dataRead,
  dataWrite,
  frame,
  getCounter,
  KEY,
  makeState,
  NONCE,
  OTHER_KEY,
  pattern,
  programKey,
  read,
  resultRead,
  SMALL_BLOCKS,
  type WriteParts,
} from './harness.ts';

const FRESH = makeState();
const KEYED = makeState({ key: KEY });

const fresh = () => new Bench(FRESH.slice());
const keyed = () => new Bench(KEYED.slice());

/** Send a write with its RESULT_READ; what came of it. */
function write(bench: Bench, parts: WriteParts = {}) {
  return read(bench.send(concat(dataWrite(parts), resultRead())));
}

function counterOf(bench: Bench): number {
  const reply = read(bench.send(getCounter()));
  if (reply.frames !== 1 || reply.result !== 0 || !reply.mac) throw new Error('no counter');
  return reply.counter;
}

function dataOf(bench: Bench, address: number, blocks: number): Uint8Array {
  const reply = read(bench.send(dataRead(address, blocks), blocks));
  if (reply.frames !== blocks || reply.result !== 0 || !reply.mac) throw new Error('no data');
  return reply.data;
}

t.test('§5.12.6.1.1 PROGRAM_KEY', async (t) => {
  await t.test('programs the key once; a second one is WRITE_FAILURE', async (t) => {
    const bench = fresh();
    const first = read(bench.send(concat(programKey(KEY), resultRead())));
    t.match(first, { frames: 1, type: 0x0100, result: Result.Ok, mac: true, counter: 0 });
    t.equal(counterOf(bench), 0);
    const second = read(bench.send(concat(programKey(OTHER_KEY), resultRead())));
    t.match(second, { type: 0x0100, result: Result.WriteFailure, mac: true });
    t.equal(counterOf(bench), 0, 'the first key is still the one');
    t.equal(bench.restart().device.programmed, true);
  });
  await t.test('block count other than 1 is GENERAL_FAILURE, and no key', async (t) => {
    const bench = fresh();
    for (const count of [0, 2, 0xffff]) {
      const reply = read(bench.send(concat(programKey(KEY, count), resultRead())));
      t.match(reply, { type: 0x0100, result: Result.GeneralFailure, mac: false });
    }
    t.notOk(bench.device.programmed);
    t.equal(Buffer.compare(bench.bytes, FRESH), 0, 'nothing written');
  });
  await t.test('the reply only when asked, also in a later chain', async (t) => {
    const bench = fresh();
    t.equal(bench.send(programKey(KEY), 4).length, 0);
    t.match(read(bench.send(resultRead())), { type: 0x0100, result: Result.Ok, mac: true });
  });
  await t.test('the key is nowhere to be read', async (t) => {
    const bench = fresh();
    const replies = [
      bench.send(concat(programKey(KEY), resultRead())),
      bench.send(concat(programKey(KEY), resultRead())),
      bench.send(getCounter()),
      bench.send(dataRead(0, 4), 4),
      bench.send(resultRead()),
    ];
    for (const reply of replies) t.equal(Buffer.from(reply).indexOf(KEY), -1);
    t.equal(Buffer.from(bench.device.request).indexOf(KEY), -1, 'its request is wiped');
  });
});

t.test('§5.12.6.1.2 GET_WRITE_COUNTER', async (t) => {
  const reply = read(keyed().send(getCounter()));
  t.match(reply, { frames: 1, type: 0x0200, result: Result.Ok, counter: 0, mac: true });
  t.same(reply.nonce, NONCE, 'the nonce is copied');
  t.match(read(fresh().send(getCounter())), { type: 0x0200, result: Result.NoAuthKey });
  for (const count of [0, 2]) {
    const refused = read(keyed().send(getCounter(count)));
    t.match(refused, { type: 0x0200, result: Result.GeneralFailure, mac: true });
  }
  t.match(
    read(fresh().send(getCounter(0))),
    { result: Result.NoAuthKey },
    'the key is checked first',
  );
});

t.test('§5.12.6.1.3 DATA_WRITE', async (t) => {
  await t.test('writes, and steps the counter once a request', async (t) => {
    const bench = keyed();
    const data = pattern(5, 3);
    const reply = write(bench, { address: 7, data });
    t.match(reply, { frames: 1, type: 0x0300, result: Result.Ok, counter: 1, address: 7 });
    t.ok(reply.mac);
    t.equal(counterOf(bench), 1, 'trap: not per block');
    t.same(dataOf(bench, 7, 5), data);
    t.same(bench.data.subarray(7 * 256, 12 * 256), data, 'in the data area too');
  });
  await t.test('checks in the order of the clause', async (t) => {
    // Each row breaks one thing more than the row before; the first check in order must win.
    const data = pattern(1, 9);
    const wrongCounter = { counter: 5, data };
    const wrongMac = { ...wrongCounter, key: OTHER_KEY };
    const wrongAddress = { ...wrongMac, address: SMALL_BLOCKS };
    const wrongCount = { ...wrongAddress, blockCount: 0 };
    const bench = keyed();
    t.match(write(bench, wrongCounter), { result: Result.CountFailure });
    t.match(write(bench, wrongMac), { result: Result.AuthFailure });
    t.match(write(bench, wrongAddress), { result: Result.AddrFailure, address: SMALL_BLOCKS });
    const expired = new Bench(makeState({ key: KEY, initialCounter: MAX_COUNTER }));
    t.match(write(expired, wrongAddress), { result: Result.WriteCounterExpired });
    t.match(write(expired, wrongCount), { result: Result.GeneralFailure });
    t.match(write(fresh(), wrongCount), { result: Result.NoAuthKey, type: 0x0300 });
    t.equal(counterOf(bench), 0);
    t.ok(bench.data.every((byte) => byte === 0));
  });
  await t.test('block count 0, over the limit, or not that of the frames', async (t) => {
    const bench = new Bench(makeState({ key: KEY, maxWriteBlocks: 4 }));
    const refused = { result: Result.GeneralFailure, type: 0x0300, mac: true };
    t.match(write(bench, { blockCount: 0 }), refused);
    t.match(write(bench, { data: pattern(5, 1) }), refused);
    t.match(write(bench, { data: pattern(40, 1) }), refused, 'more frames than are ever taken');
    t.match(write(bench, { data: pattern(3, 1), blockCount: 2 }), refused);
    t.match(write(bench, { data: pattern(2, 1), blockCount: 3 }), refused);
    t.match(write(bench, { blockCount: 0xffff }), refused);
    const mixed = dataWrite({ data: pattern(2, 1) });
    mixed[FRAME_BYTES + FrameField.Type + 1] = 4;
    t.match(read(bench.send(concat(mixed, resultRead()))), refused, 'frames of other types');
    t.equal(counterOf(bench), 0);
    t.match(write(bench, { data: pattern(4, 1) }), { result: Result.Ok });
  });
  await t.test('trap: address at and over the end', async (t) => {
    const bench = keyed();
    const last = SMALL_BLOCKS - 1;
    t.match(write(bench, { address: SMALL_BLOCKS }), { result: Result.AddrFailure });
    t.match(write(bench, { address: last, data: pattern(2, 1) }), { result: Result.AddrFailure });
    t.match(write(bench, { address: 0xffff }), { result: Result.AddrFailure });
    t.match(write(bench, { address: last, data: pattern(1, 4) }), { result: Result.Ok });
    t.same(dataOf(bench, last, 1), pattern(1, 4));
    t.ok(bench.data.subarray(0, last * 256).every((byte) => byte === 0));
  });
  await t.test('a MAC wrong in any byte, or over anything else', async (t) => {
    const bench = keyed();
    const frames = dataWrite({ data: pattern(2, 1) });
    for (let at = 0; at < frames.length; at++) {
      const inFrame = at % FRAME_BYTES;
      const covered = inFrame >= FrameField.Data && inFrame < FrameField.BlockCount;
      const mac = at >= FRAME_BYTES && inFrame >= FrameField.KeyMac && inFrame < FrameField.Data;
      if (!covered && !mac) continue;
      const forged = frames.slice();
      forged[at]! ^= 1;
      const { result } = read(bench.send(concat(forged, resultRead())));
      const outside = result === Result.AddrFailure && inFrame === FrameField.Address;
      if (result !== Result.AuthFailure && !outside) t.fail(`byte ${at}: ${result}`);
    }
    t.equal(counterOf(bench), 0);
    t.ok(bench.data.every((byte) => byte === 0));
    t.match(read(bench.send(concat(frames, resultRead()))), { result: Result.Ok });
  });
  await t.test('replayed, behind or ahead is COUNT_FAILURE', async (t) => {
    const bench = keyed();
    const old = concat(dataWrite({ data: pattern(1, 1) }), resultRead());
    t.match(read(bench.send(old)), { result: Result.Ok });
    t.match(write(bench, { counter: 1, data: pattern(1, 2) }), { result: Result.Ok });
    t.match(read(bench.send(old)), { result: Result.CountFailure, counter: 2, mac: true });
    t.match(write(bench, { counter: 3 }), { result: Result.CountFailure });
    t.same(dataOf(bench, 0, 1), pattern(1, 2));
    t.equal(counterOf(bench), 2);
  });
  await t.test('without RESULT_READ it is done silently', async (t) => {
    const bench = keyed();
    t.equal(bench.send(dataWrite({ address: 3 }), 0).length, 0);
    t.equal(counterOf(bench), 1);
    const later = read(bench.send(resultRead()));
    t.match(later, { type: 0x0300, result: Result.Ok, counter: 1, address: 3, mac: true });
    t.equal(bench.send(dataWrite({ counter: 0 }), 3).length, 0, 'room, but nobody asked');
    t.match(read(bench.send(resultRead())), { type: 0x0300, result: Result.CountFailure });
    t.match(read(bench.send(resultRead())), { result: Result.CountFailure }, 'as often as asked');
  });
});

t.test('§5.12.6.3: the counter ends at 0xFFFFFFFF', async (t) => {
  const bench = new Bench(makeState({ key: KEY, initialCounter: MAX_COUNTER - 1 }));
  const last = write(bench, { counter: MAX_COUNTER - 1, data: pattern(1, 1) });
  t.match(last, { result: Result.Ok, counter: MAX_COUNTER }, '0x80 is a value: this one worked');
  t.match(write(bench, { counter: MAX_COUNTER, data: pattern(1, 2) }), {
    type: 0x0300,
    result: Result.WriteCounterExpired,
    counter: MAX_COUNTER,
    mac: true,
  });
  t.match(write(bench, { counter: 0 }), { result: Result.WriteCounterExpired });
  t.equal(counterOf(bench), MAX_COUNTER);
  t.same(dataOf(bench, 0, 1), pattern(1, 1), 'it can still be read');
  t.equal(counterOf(bench.restart()), MAX_COUNTER);
});

t.test('§5.12.6.1.4 DATA_READ', async (t) => {
  await t.test('every frame has nonce, address, block count; the last the MAC', async (t) => {
    const bench = keyed();
    write(bench, { address: 10, data: pattern(3, 8) });
    const reply = bench.send(dataRead(9, 5), 5);
    t.match(read(reply), { frames: 5, type: 0x0400, result: Result.Ok, mac: true });
    for (let at = 0; at < reply.length; at += FRAME_BYTES) {
      const one = read(reply.subarray(at, at + FRAME_BYTES));
      t.match(one, { type: 0x0400, address: 9, blockCount: 5, result: 0 });
      t.same(one.nonce, NONCE);
    }
    const zeroes = new Uint8Array(256);
    t.same(read(reply).data, concat(zeroes, pattern(3, 8), zeroes));
  });
  await t.test('no key, block count, address', async (t) => {
    const bench = new Bench(makeState({ key: KEY, maxReadBlocks: 4 }));
    const ask = (address: number, count: number, room = count) =>
      read(bench.send(dataRead(address, count), room));
    t.match(read(fresh().send(dataRead(0, 0), 1)), { type: 0x0400, result: Result.NoAuthKey });
    t.match(ask(0, 0, 1), { frames: 1, result: Result.GeneralFailure });
    t.match(ask(0, 5), { frames: 1, result: Result.GeneralFailure });
    t.match(ask(0, 0xffff, 8), { frames: 1, result: Result.GeneralFailure, mac: true });
    t.match(ask(SMALL_BLOCKS, 1), { frames: 1, result: Result.AddrFailure, mac: true });
    const crossing = ask(SMALL_BLOCKS - 1, 2);
    t.match(crossing, { frames: 2, result: Result.AddrFailure, mac: true });
    t.ok(crossing.data!.every((byte) => byte === 0));
    t.match(ask(SMALL_BLOCKS - 1, 1), { result: Result.Ok });
    t.match(ask(0, 4, 3), { frames: 1, result: Result.GeneralFailure }, 'it does not fit');
    t.match(ask(0, 4, 9), { frames: 4, result: Result.Ok }, 'room to spare');
  });
  await t.test('what cannot be read is READ_FAILURE, without what was read', async (t) => {
    const bytes = KEYED.slice();
    const bench = new Bench(bytes, {
      store: (sink) =>
        new FaultStore((inner) => new MemoryStore(bytes, inner, { immediate: true }), sink, [
          { kind: 'read', nth: 1 },
          { kind: 'read', nth: 2, short: 256 },
        ]),
    });
    bytes.fill(0x77, bytes.length - SMALL_BLOCKS * 256);
    for (const why of ['failed', 'short']) {
      const reply = read(bench.send(dataRead(0, 2), 2));
      t.match(reply, { frames: 2, type: 0x0400, result: Result.ReadFailure, mac: true }, why);
      t.ok(reply.data!.every((byte) => byte === 0));
    }
    t.match(read(bench.send(dataRead(0, 2), 2)), { result: Result.Ok });
  });
});

t.test('§5.12.6.1.5 RESULT_READ', async (t) => {
  const bench = keyed();
  t.match(read(bench.send(resultRead())), { type: 0, result: Result.GeneralFailure }, 'of nothing');
  write(bench);
  const wrong = read(bench.send(resultRead(0)));
  t.match(wrong, { type: 0x0300, result: Result.GeneralFailure, mac: true });
  t.match(read(bench.send(resultRead(2))), { result: Result.GeneralFailure });
  t.match(read(bench.send(resultRead())), { type: 0x0300, result: Result.Ok, counter: 1 });
  counterOf(bench);
  dataOf(bench, 0, 1);
  t.match(read(bench.send(resultRead())), { type: 0x0300, result: Result.Ok }, 'reads leave it');
  const inChain = read(bench.send(concat(dataWrite({ counter: 1 }), resultRead(0))));
  t.match(inChain, { type: 0x0300, result: Result.GeneralFailure, counter: 1 });
  t.equal(counterOf(bench), 1, 'told that it failed: not done either');
  const unkeyed = fresh();
  unkeyed.send(concat(programKey(KEY), resultRead(0)));
  t.notOk(unkeyed.device.programmed);
});

t.test('a request in the wrong shape changes nothing', async (t) => {
  const shapes: [string, Uint8Array, number, object][] = [
    ['unknown type', frame({ type: 6, blockCount: 1 }), 1, { type: 0, result: 1 }],
    ['type 0', frame({ type: 0 }), 1, { type: 0, result: 1 }],
    ['a response as a request', frame({ type: 0x0300, blockCount: 1 }), 1, { type: 0, result: 1 }],
    ['two counter requests', concat(getCounter(), getCounter()), 2, { type: 0x0200, result: 1 }],
    ['result before write', concat(resultRead(), dataWrite()), 2, { frames: 1, result: 1 }],
    ['counter, then write', concat(getCounter(), dataWrite()), 1, { type: 0x0200, result: 1 }],
    ['read and result', concat(dataRead(0, 1), resultRead()), 1, { type: 0x0400, result: 1 }],
    ['write and a key', concat(dataWrite(), programKey(KEY)), 1, { frames: 0 }],
    ['two results', concat(dataWrite(), resultRead(), resultRead()), 1, { result: 1 }],
    ['no room for a counter', getCounter(), 0, { frames: 0 }],
    ['no room for data', dataRead(0, 1), 0, { frames: 0 }],
    ['no room for a result', concat(dataWrite(), resultRead()), 0, { frames: 0 }],
    ['no room for anything', frame({ type: 0xabcd }), 0, { frames: 0 }],
  ];
  for (const [name, request, room, expected] of shapes) {
    const bench = keyed();
    t.match(read(bench.send(request, room)), expected, name);
    t.equal(counterOf(bench), 0, name);
    t.ok(bench.data.every((byte) => byte === 0));
  }
  const bench = keyed();
  bench.send(concat(dataWrite(), resultRead()), 0);
  t.match(read(bench.send(resultRead())), { type: 0x0300, result: 1 }, 'a later result tells it');
});

t.test('limits: 0 is no limit, up to 512 blocks', async (t) => {
  const bench = new Bench(
    makeState({ size: 1 << 20, key: KEY, maxWriteBlocks: 0, maxReadBlocks: 0 }),
  );
  t.match(write(bench, { address: 100, data: pattern(512, 6) }), { result: Result.Ok, counter: 1 });
  t.same(dataOf(bench, 100, 512), pattern(512, 6));
  t.match(write(bench, { counter: 1, data: pattern(513, 6) }), { result: Result.GeneralFailure });
  t.match(read(bench.send(dataRead(0, 513), 513)), { frames: 1, result: Result.GeneralFailure });
});

t.test('the largest device: 16 MiB, all of whose 65536 blocks have an address', async (t) => {
  const bench = new Bench(makeState({ size: 16 << 20, key: KEY }));
  t.match(write(bench, { address: 0xffff, data: pattern(1, 5) }), { result: Result.Ok });
  t.match(write(bench, { counter: 1, address: 0xffff, data: pattern(2, 5) }), {
    result: Result.AddrFailure,
  });
  t.same(dataOf(bench, 0xffff, 1), pattern(1, 5));
});

t.test('the JEDEC face', async (t) => {
  const jedec = (state: Uint8Array) => new Bench(state.slice(), { profile: JEDEC_PROFILE });
  const bench = jedec(FRESH);
  const key = read(bench.send(concat(programKey(KEY, 0), resultRead(0))));
  t.match(key, { type: 0x0100, result: Result.Ok, mac: false }, 'no MAC on this one');
  t.match(read(bench.send(getCounter(0))), { result: Result.Ok, mac: true });
  bench.send(dataWrite({ data: pattern(2, 7) }), 0);
  t.match(read(bench.send(resultRead(0))), { type: 0x0300, result: Result.Ok, counter: 1 });
  const data = read(bench.send(dataRead(0, 0), 2));
  t.match(data, { frames: 2, result: Result.Ok, blockCount: 2, mac: true }, 'CMD23 says how many');
  t.same(data.data, pattern(2, 7));
  t.match(read(bench.send(getCounter(2))), { result: Result.GeneralFailure });

  const end = jedec(makeState({ key: KEY, initialCounter: MAX_COUNTER - 1 }));
  t.match(write(end, { counter: MAX_COUNTER - 1 }), { result: 0x80 }, 'OK, and now it is expired');
  t.match(write(end, { counter: MAX_COUNTER }), { result: 0x85 });
  t.match(read(end.send(getCounter(0))), { result: 0x80, counter: MAX_COUNTER });
});

t.test('one request at a time', async (t) => {
  const bytes = KEYED.slice();
  let store: MemoryStore | undefined;
  const bench = new Bench(bytes, {
    store: (sink) => (store = new MemoryStore(bytes, sink)),
  });
  bench.device.request.set(dataRead(0, 1));
  bench.device.execute(1, 1, () => {});
  t.ok(bench.device.busy);
  t.throws(() => bench.device.execute(1, 1, () => {}), /one request at a time/);
  store!.run();
  t.notOk(bench.device.busy);
});
