import { readFileSync } from 'node:fs';
import t from 'tap';
import { parseConfig } from '../../lib/rpmb/config.ts';
import {
  type ConformOptions,
  type ConformReport,
  conform,
  conformClauses,
} from '../../lib/rpmb/conform/index.ts';
import { exchangeWith } from '../../lib/rpmb/endpoint.ts';
import { JEDEC_PROFILE } from '../../lib/rpmb/rules.ts';
import { Bench, KEY, makeState, system } from './harness.ts';
import { type Fault, Model, type ModelOptions } from './model.ts';

const NEAR_END = 0xfffffffe;

/** Options of a destructive run with the key. */
function run(
  device: { exchange: ConformOptions['exchange']; config: Uint8Array },
  more: Partial<ConformOptions> = {},
): Promise<ConformReport> {
  return conform({
    name: 'test',
    exchange: device.exchange,
    limits: parseConfig(device.config, 'test'),
    getRandom: system.getRandom,
    key: KEY,
    destructive: true,
    timeoutMs: 1000,
    ...more,
  });
}

const idsOf = (report: ConformReport, outcome: string) =>
  report.clauses.filter((clause) => clause.outcome === outcome).map(({ id }) => id);

const whys = (report: ConformReport) =>
  report.clauses
    .filter(({ outcome }) => outcome === 'broken')
    .map(({ id, why }) => `${id}: ${why}`);

function benchDevice(bench: Bench) {
  const { capacityUnits, maxWriteBlocks, maxReadBlocks } = bench.layout;
  return {
    exchange: exchangeWith(bench.device),
    config: Uint8Array.of(capacityUnits, maxWriteBlocks, maxReadBlocks),
  };
}

t.test('of this RPMB nothing is broken, and three runs show every clause', async (t) => {
  const fresh = new Bench(makeState({ maxWriteBlocks: 16 }));
  const first = await run(benchDevice(fresh));
  t.same(whys(first), []);
  const ending = new Bench(makeState({ initialCounter: NEAR_END }));
  const second = await run(benchDevice(ending));
  t.same(whys(second), []);
  const third = await run(benchDevice(fresh.restart()));
  t.same(whys(third), []);
  const shown = new Set([first, second, third].flatMap((report) => idsOf(report, 'holds')));
  const all = conformClauses().map(({ id }) => id);
  t.same(
    all.filter((id) => !shown.has(id)),
    [],
    `all ${all.length} clauses are shown`,
  );
  t.equal(new Set(all).size, all.length, 'each has its own name');
  t.equal(third.holds + third.broken + third.notShown, all.length);
  t.match(first.note, { address: 509, counter: Number, digest: /^[0-9a-f]{64}$/ });
});

t.test('what is not shown says why', async (t) => {
  const bench = new Bench(makeState());
  const before = bench.bytes.slice();
  const harmless = await run(benchDevice(bench), { destructive: false });
  t.equal(harmless.broken, 0);
  t.equal(Buffer.compare(bench.bytes, before), 0, 'the harmless set changes nothing');
  t.notOk(bench.device.programmed);
  for (const { outcome, why } of harmless.clauses) {
    if (outcome === 'not shown') t.ok(why);
  }
  const keyed = new Bench(makeState({ key: KEY }));
  const keyedBefore = keyed.bytes.slice();
  const reading = await run(benchDevice(keyed), { destructive: false });
  t.equal(reading.broken, 0);
  t.ok(idsOf(reading, 'holds').includes('read.many'));
  t.equal(Buffer.compare(keyed.bytes, keyedBefore), 0);
  const blind = await conform({
    name: 'test',
    exchange: exchangeWith(keyed.device),
    limits: keyed.layout,
    getRandom: system.getRandom,
    destructive: true,
  });
  t.equal(blind.broken, 0);
  t.ok(idsOf(blind, 'holds').includes('chain.no-room'));
  t.match(
    blind.clauses.find(({ id }) => id === 'write.data'),
    { outcome: 'not shown', why: 'needs the key' },
  );
  t.equal(Buffer.compare(keyed.bytes, keyedBefore), 0, 'without a key, nothing can be written');
  const wrong = await run(benchDevice(keyed), {
    key: KEY.map((byte) => byte ^ 1),
    destructive: false,
  });
  t.match(wrong.hint, /is it the key of the device/);
  t.match(
    wrong.clauses.find(({ id }) => id === 'counter.reply'),
    { outcome: 'broken', why: /mac: its MAC is not that of this key/ },
  );
});

t.test('limits of 1, no limit, and the largest device', async (t) => {
  for (const options of [
    { maxWriteBlocks: 1, maxReadBlocks: 1 },
    { maxWriteBlocks: 0, maxReadBlocks: 0 },
    { maxWriteBlocks: 255, maxReadBlocks: 255 },
    { size: 16 << 20 },
  ]) {
    const report = await run(benchDevice(new Bench(makeState(options))));
    t.same(whys(report), [], JSON.stringify(options));
  }
});

t.test('the JEDEC face holds by its own rules', async (t) => {
  const options = { profile: JEDEC_PROFILE };
  const fresh = new Bench(makeState(), options);
  t.same(whys(await run(benchDevice(fresh), options)), []);
  const ending = new Bench(makeState({ initialCounter: NEAR_END }), options);
  const report = await run(benchDevice(ending), options);
  t.same(whys(report), []);
  t.ok(idsOf(report, 'holds').includes('expiry.result'));
});

/** The runs a device is put through: new, after a restart, at the end of its counter. */
async function* examine(options: ModelOptions): AsyncGenerator<ConformReport> {
  const model = new Model(options);
  const first = await run(model, { timeoutMs: 30 });
  yield first;
  model.restart();
  const earlier = first.note === undefined ? {} : { earlier: first.note };
  yield await run(model, { timeoutMs: 30, ...earlier });
  yield await run(new Model({ ...options, counter: NEAR_END }), { timeoutMs: 30 });
}

t.test('the model without a fault breaks nothing', async (t) => {
  for await (const report of examine({})) t.same(whys(report), []);
  // The note is found in the device too, where nobody kept the report.
  const model = new Model({});
  await run(model);
  model.restart();
  const again = await run(model);
  t.same(whys(again), []);
  t.ok(idsOf(again, 'holds').includes('kept.data'));
});

/** Each fault, and the clause that must name it. */
const CAUGHT_BY: Record<Fault, string> = {
  'forgets the key': 'kept.key',
  'forgets the counter': 'kept.counter',
  'forgets the data': 'kept.data',
  'answers OK for a lost write': 'write.data',
  'address check off by one': 'write.address',
  'no address check': 'read.address',
  'address check of the first block only': 'read.address',
  'counter stepped per block': 'write.counter-step',
  'counter never compared': 'write.replay',
  'counter may be ahead': 'write.counter',
  'counter wraps': 'expiry.result',
  'counter stepped by a refused write': 'write.mac',
  'no expiry': 'expiry.result',
  'expiry as a bit': 'expiry.result',
  'MAC never checked': 'write.mac',
  'MAC over the data only': 'counter.reply',
  'MAC compared up to its middle': 'write.mac',
  'MAC of the last frame only': 'read.many',
  'MAC checked before the address': 'write.order',
  'key can be overwritten': 'key.once',
  'key told': 'key.secret',
  'key programmed whatever the block count': 'key.block-count',
  'no MAC on the key reply': 'key.mac',
  'nonce not copied': 'counter.reply',
  'reads without a MAC': 'read.reply',
  'reads one block only': 'read.many',
  'read address not copied': 'read.reply',
  'read block count not copied': 'read.reply',
  'writes one block only': 'write.many',
  'writes whatever the block count': 'write.block-count-over',
  'counter told without a key': 'no-key.counter',
  'counter read whatever the block count': 'counter.block-count',
  'reads whatever the block count': 'read.block-count-zero',
  'reads without a key': 'no-key.read',
  'writes without a key': 'no-key.write',
  'old counter in the write reply': 'write.reply',
  'write reply without the address': 'write.reply',
  'result only in the same chain': 'result.later',
  'result read whatever the block count': 'result.block-count',
  'replies unasked': 'write.silent',
  'wrong response type': 'no-key.counter',
  'dies of a part of a frame': 'chain.part-frame',
  'dies of an unknown request': 'chain.unknown',
  'dies of a huge block count': 'chain.huge-count',
  'never completes without room': 'chain.no-room',
  'writes only with a result read': 'write.silent',
  'overruns the room': 'chain.little-room',
};

for (const [fault, clause] of Object.entries(CAUGHT_BY)) {
  t.test(`a device that is wrong is named: ${fault}`, async (t) => {
    const broken: string[] = [];
    for await (const report of examine({ faults: [fault as Fault] })) {
      broken.push(...whys(report));
      if (idsOf(report, 'broken').includes(clause)) break;
    }
    const why = broken.find((text) => text.startsWith(`${clause}: `));
    t.ok(why, why ?? `not ${clause} but ${broken.join('; ')}`);
  });
}

t.test('a device that is gone ends the run', async (t) => {
  const report = await run(
    {
      exchange: () => Promise.reject(new Error('connection closed')),
      config: Uint8Array.of(1, 1, 1),
    },
    {},
  );
  t.equal(report.broken + report.holds, 0);
  t.match(report.clauses[0], { outcome: 'not shown', why: /gone: connection closed/ });
});

t.test('clauses are told as they come', async (t) => {
  const told: string[] = [];
  const report = await run(new Model({}), { onClause: ({ id }) => told.push(id) });
  t.same(
    told,
    report.clauses.map(({ id }) => id),
  );
});

t.test('the documentation names every clause', async (t) => {
  const text = readFileSync(new URL('../../docs/rpmb.md', import.meta.url), 'utf8');
  for (const { id } of conformClauses()) t.ok(text.includes(id), id);
  t.match(text, `${Object.keys(CAUGHT_BY).length} deliberately wrong devices`);
});
