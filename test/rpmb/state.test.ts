import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  existsSync,
  openSync,
  readFileSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { native } from '../../lib/native/index.ts';
import { openOffline, openOfflineDevice } from '../../lib/rpmb/endpoint.ts';
import { RpmbError } from '../../lib/rpmb/errors.ts';
import { MAX_COUNTER, Result } from '../../lib/rpmb/frame.ts';
import { createState } from '../../lib/rpmb/state/create.ts';
import { checkState, inspectState } from '../../lib/rpmb/state/inspect.ts';
import { type OpenOptions, openState, type StateFile } from '../../lib/rpmb/state/open.ts';
import { provisionState } from '../../lib/rpmb/state/provision.ts';
import {
  concat,
  dataRead,
  dataWrite,
  getCounter,
  KEY,
  makeState,
  OTHER_KEY,
  pattern,
  programKey,
  read,
  resultRead,
  SMALL,
  sendTo,
  temporaryFolder,
} from './harness.ts';

const folder = temporaryFolder();
let files = 0;
const newPath = () => join(folder, `state-${files++}`);

function fileOf(bytes: Uint8Array): string {
  const path = newPath();
  writeFileSync(path, bytes, { mode: 0o600 });
  return path;
}

/** Send requests to the device of an open state. */
function use(state: StateFile, ...requests: Uint8Array[]) {
  const offline = openOfflineDevice(state, native);
  try {
    return requests.map((request) => read(sendTo(offline.device, request)));
  } finally {
    offline.close();
  }
}

function open<T>(path: string, options: OpenOptions, work: (state: StateFile) => T): T {
  const state = openState(path, options, native);
  try {
    return work(state);
  } finally {
    state.close();
  }
}

/** The error of opening a file; it has the form every message has. */
function refusal(path: string, options: OpenOptions = {}): RpmbError {
  try {
    openState(path, options, native).close();
  } catch (error) {
    if (!(error instanceof RpmbError)) throw error;
    if (!/^[^\n]+: [^\n]+ \([^\n]+\)$/.test(error.message)) throw new Error(error.message);
    return error;
  }
  throw new Error('it was opened');
}

const FRESH = makeState();
const KEYED = makeState({ key: KEY });
const SLOT_BYTES = 12288;
const DATA_AT = 4096 + 2 * SLOT_BYTES;

t.test('create', async (t) => {
  await t.test('a whole file of its own', async (t) => {
    const path = newPath();
    createState(path, { size: 1 << 20, key: KEY, initialCounter: 7 }, native);
    const stats = statSync(path);
    t.equal(stats.mode & 0o777, 0o600);
    t.equal(stats.size, DATA_AT + (1 << 20));
    t.ok(stats.blocks * 512 >= stats.size, 'fully allocated');
    t.match(inspectState(path, native), {
      version: 1,
      capacity: 1 << 20,
      blocks: 4096,
      maxWriteBlocks: 32,
      maxReadBlocks: 32,
      keyProgrammed: true,
      keyWrapped: false,
      writeCounter: 7,
      commits: 0,
      interrupted: false,
    });
    t.ok(checkState(path, {}, native).ok);
  });
  await t.test('from a raw image', async (t) => {
    const raw = fileOf(pattern(600, 5).subarray(0, 600 * 256 - 100));
    const path = newPath();
    createState(path, { from: raw, key: KEY }, native);
    t.equal(inspectState(path, native).capacity, 2 * SMALL, 'rounded up');
    const [last] = open(path, {}, (state) => use(state, dataRead(598, 1)));
    t.same(last!.data, pattern(600, 5).subarray(598 * 256, 599 * 256));
    t.throws(() => createState(newPath(), { from: raw, size: SMALL }, native), /don't fit/);
    t.throws(() => createState(newPath(), { from: folder }, native), /not a regular file/);
    t.throws(() => createState(newPath(), { from: `${raw}x` }, native), /ENOENT/);
  });
  await t.test('never over what is there, nor through a link to nowhere', async (t) => {
    const path = fileOf(new Uint8Array(3));
    t.throws(() => createState(path, { size: SMALL }, native), { code: 'ERR_VDUSE_RPMB_EXISTS' });
    t.equal(readFileSync(path).length, 3);
    const link = newPath();
    symlinkSync(newPath(), link);
    t.throws(() => createState(link, { size: SMALL }, native), { code: 'ERR_VDUSE_RPMB_EXISTS' });
  });
  await t.test('what is no RPMB is refused by name', async (t) => {
    const options = { code: 'ERR_VDUSE_RPMB_OPTIONS' };
    for (const size of [0, 1000, SMALL + 256, 17 << 20, Number.NaN]) {
      t.throws(() => createState(newPath(), { size }, native), options, `size ${size}`);
    }
    const attempt = (more: object) => () =>
      createState(newPath(), { size: SMALL, ...more }, native);
    t.throws(attempt({ maxWriteBlocks: 256 }), { message: /--max-write-blocks 256/ });
    t.throws(attempt({ key: new Uint8Array(31) }), { message: /the key: has 31 bytes/ });
    t.throws(attempt({ wrapKey: new Uint8Array(16) }), { message: /the wrap key: has 16 bytes/ });
    t.throws(attempt({ maxReadBlocks: -1 }), { message: /--max-read-blocks -1/ });
    t.throws(attempt({ initialCounter: 2 ** 32 }), { message: /--initial-counter 4294967296/ });
    t.throws(() => createState(join(folder, 'no', 'such'), { size: SMALL }, native), {
      code: 'ERR_VDUSE_RPMB_PERMISSION',
    });
  });
  await t.test('nothing is left when the disk is full', async (t) => {
    const path = newPath();
    const full = {
      ...native,
      fallocate: () => {
        throw Object.assign(new Error('full'), { code: 'ENOSPC' });
      },
    };
    t.throws(() => createState(path, { size: SMALL }, full), /cannot be allocated: ENOSPC/);
    t.notOk(existsSync(path));
    const without = {
      ...native,
      fallocate: () => {
        throw Object.assign(new Error('no'), { code: 'EOPNOTSUPP' });
      },
    };
    createState(path, { size: SMALL }, without);
    t.ok(checkState(path, {}, native).ok, 'zeroes do as well');
  });
});

t.test('trap: key, counter and data survive a restart', async (t) => {
  const path = newPath();
  createState(path, { size: SMALL }, native);
  const data = pattern(3, 4);
  const write = concat(dataWrite({ address: 5, data }), resultRead());
  const results = open(path, {}, (state) =>
    use(state, concat(programKey(KEY), resultRead()), write),
  );
  t.same(
    results.map(({ result }) => result),
    [0, 0],
  );
  open(path, {}, (state) => {
    t.equal(state.counter, 1);
    t.ok(state.programmed);
    const [counter, replay, second] = use(
      state,
      getCounter(),
      write,
      concat(programKey(OTHER_KEY), resultRead()),
    );
    t.match(counter, { result: 0, counter: 1, mac: true });
    t.match(replay, { result: Result.CountFailure });
    t.match(second, { result: Result.WriteFailure });
    const endpoint = use(state, dataRead(7, 1))[0]!;
    t.same(endpoint.data, data.subarray(512));
  });
  t.same(new Uint8Array(readFileSync(path)).subarray(DATA_AT + 5 * 256, DATA_AT + 8 * 256), data);
});

t.test('what cannot be opened says why', async (t) => {
  const is = (path: string, code: string, message: RegExp) => {
    const error = refusal(path);
    t.equal(error.code, `ERR_VDUSE_RPMB_${code}`, code);
    t.match(error.message, message);
  };
  is(join(folder, 'nothing'), 'MISSING', /no such file \(.*vduse rpmb create/);
  is(folder, 'KIND', /is a directory/);
  const pipe = newPath();
  execFileSync('mkfifo', ['-m', '600', pipe]);
  is(pipe, 'KIND', /not a regular file/);
  is(fileOf(new Uint8Array(0)), 'FOREIGN', /is empty/);
  is(fileOf(new Uint8Array(300)), 'FOREIGN', /not an RPMB state file/);
  is(fileOf(pattern(512, 1)), 'FOREIGN', /vduse rpmb create STATE --from/);
  const readable = fileOf(FRESH);
  chmodSync(readable, 0o640);
  is(readable, 'MODE', /0640 \(chmod 600/);
  const newer = FRESH.slice();
  newer[8] = 2;
  is(fileOf(newer), 'NEWER', /newer than version 1/);
  is(fileOf(FRESH.subarray(0, -1)), 'SIZE', /has \d+ of its \d+ bytes/);
  is(fileOf(FRESH.subarray(0, 600)), 'SIZE', /cut short/);
  is(fileOf(concat(FRESH, new Uint8Array(5))), 'SIZE', /5 more than it was made with/);
  const header = FRESH.slice();
  header[40]! ^= 1;
  is(fileOf(header), 'DAMAGED', /header/);
  const slots = FRESH.slice();
  slots[4096 + 16]! ^= 1;
  slots[4096 + SLOT_BYTES + 16]! ^= 1;
  is(fileOf(slots), 'DAMAGED', /neither of its two slots is whole/);
  const mixed = FRESH.slice();
  mixed.set(makeState().subarray(4096, DATA_AT), 4096);
  is(fileOf(mixed), 'DAMAGED', /neither/);
});

t.test('slots that contradict each other are not believed', async (t) => {
  const path = fileOf(KEYED);
  const states = [readFileSync(path)];
  for (const counter of [0, 1, 2]) {
    open(path, {}, (state) => use(state, concat(dataWrite({ counter }), resultRead())));
    states.push(readFileSync(path));
  }
  // Slot 1 of the beginning under slot 0 of three commits later.
  const mixed = Uint8Array.from(states[3]!);
  mixed.set(states[0]!.subarray(4096 + SLOT_BYTES, DATA_AT), 4096 + SLOT_BYTES);
  t.match(refusal(fileOf(mixed)).message, /contradict/);
});

t.test('the state file is locked', async (t) => {
  const path = fileOf(KEYED);
  open(path, {}, () => {
    t.equal(refusal(path).code, 'ERR_VDUSE_RPMB_IN_USE');
    t.throws(() => inspectState(path, native), { code: 'ERR_VDUSE_RPMB_IN_USE' });
  });
  openState(path, {}, native).close();
});

t.test(
  'any byte of header or slots wrong: an older state or a refusal, never a crash',
  async (t) => {
    const base = fileOf(KEYED);
    open(base, {}, (state) =>
      use(
        state,
        concat(dataWrite(), resultRead()),
        concat(dataWrite({ counter: 1 }), resultRead()),
      ),
    );
    const bytes = new Uint8Array(readFileSync(base));
    const path = fileOf(bytes);
    fc.assert(
      fc.property(
        fc.oneof(
          fc.integer({ min: 0, max: 511 }),
          fc.integer({ min: 4096, max: 4096 + 768 }),
          fc.integer({ min: 4096 + SLOT_BYTES, max: 4096 + SLOT_BYTES + 768 }),
          fc.integer({ min: 0, max: DATA_AT - 1 }),
        ),
        fc.integer({ min: 1, max: 255 }),
        (at, flip) => {
          const damaged = bytes.slice();
          damaged[at]! ^= flip;
          writeFileSync(path, damaged);
          const report = checkState(path, {}, native);
          try {
            return open(path, {}, ({ counter }) => report.ok && (counter === 1 || counter === 2));
          } catch (error) {
            return error instanceof RpmbError && !report.ok;
          }
        },
      ),
      { numRuns: 150 },
    );
    for (let n = 0; n < 60; n++) {
      writeFileSync(path, bytes);
      truncateSync(path, Math.floor((n / 60) * bytes.length));
      refusal(path);
    }
    t.pass();
  },
);

t.test('the key at rest, wrapped', async (t) => {
  const wrapKey = pattern(1, 77).slice(0, 32);
  await t.test('programmed at creation', async (t) => {
    const path = newPath();
    createState(path, { size: SMALL, key: KEY, wrapKey }, native);
    t.equal(readFileSync(path).indexOf(KEY), -1, 'it is nowhere in the file');
    const write = concat(dataWrite(), resultRead());
    t.match(
      open(path, { wrapKey }, (state) => use(state, write)),
      [{ result: 0, mac: true }],
    );
    t.equal(readFileSync(path).indexOf(KEY), -1);
    t.equal(
      open(path, { wrapKey }, ({ counter }) => counter),
      1,
    );
    t.match(inspectState(path, native), { keyWrapped: true, keyProgrammed: true, writeCounter: 1 });
  });
  await t.test('programmed later', async (t) => {
    const path = newPath();
    createState(path, { size: SMALL, wrapKey }, native);
    t.match(refusal(path).message, /its key is wrapped \(give the --wrap-key-file/);
    t.match(refusal(path, { wrapKey: OTHER_KEY }).message, /not its wrap key/);
    const program = concat(programKey(KEY), resultRead());
    const write = concat(dataWrite(), resultRead());
    open(path, { wrapKey }, (state) => {
      t.match(use(state, program), [{ result: 0, mac: true }]);
      t.match(use(state, write), [{ result: 0 }], 'a second device over the open state');
    });
    t.equal(readFileSync(path).indexOf(KEY), -1);
    t.equal(refusal(path, { wrapKey: OTHER_KEY }).code, 'ERR_VDUSE_RPMB_WRAP_KEY');
    t.match(
      open(path, { wrapKey }, (state) => use(state, getCounter())),
      [{ counter: 1, mac: true }],
    );
    t.match(checkState(path, { wrapKey }, native).findings, [
      {},
      {},
      {},
      {},
      { verdict: 'ok', text: 'programmed, and unwraps' },
    ]);
    t.notOk(checkState(path, { wrapKey: OTHER_KEY }, native).ok);
    t.ok(checkState(path, {}, native).ok, 'the rest is checked without it');
  });
  const plain = refusal(fileOf(KEYED), { wrapKey });
  t.match(plain.message, /not wrapped/);
});

t.test('a state is served by one device at a time, and goes on where it was', async (t) => {
  const path = fileOf(KEYED);
  open(path, {}, (state) => {
    const first = openOfflineDevice(state, native);
    t.throws(() => openOfflineDevice(state, native), /served already/);
    sendTo(first.device, dataWrite(), 0);
    t.equal(state.counter, 1, 'anybody may look at the counter');
    t.same([...new Uint8Array(state.model.live, 64, 64)], Array(64).fill(0), 'keys are with it');
    first.close();
    t.match(use(state, concat(dataWrite(), resultRead()), getCounter()), [
      { result: Result.CountFailure },
      { counter: 1, mac: true },
    ]);
    const { live } = state.model;
    state.close();
    t.equal(Buffer.from(live).indexOf(KEY), -1, 'wiped');
  });
});

t.test('inspect and fsck never tell the key', async (t) => {
  const path = fileOf(KEYED);
  const text = JSON.stringify([inspectState(path, native), checkState(path, {}, native)]);
  for (const encoding of ['hex', 'base64', 'latin1'] as const) {
    t.notOk(text.includes(Buffer.from(KEY).toString(encoding)));
  }
});

t.test('fsck', async (t) => {
  const path = fileOf(KEYED);
  open(path, {}, (state) =>
    use(state, concat(dataWrite({ address: 2, data: pattern(2, 2) }), resultRead())),
  );
  t.match(checkState(path, {}, native), {
    ok: true,
    findings: [
      { part: 'header', verdict: 'ok' },
      { part: 'slot 0', text: 'sequence 2, counter 1, 2 blocks at 2, newest' },
      { part: 'slot 1', text: 'sequence 1, counter 0, no data' },
      { part: 'data', text: 'as the slots say' },
      { part: 'key', text: 'programmed' },
    ],
  });
  const behind = new Uint8Array(readFileSync(path));
  behind.fill(0, DATA_AT + 2 * 256, DATA_AT + 3 * 256);
  behind.fill(9, 4096 + SLOT_BYTES, 4096 + SLOT_BYTES + 10);
  const crashed = fileOf(behind);
  t.match(checkState(crashed, {}, native), {
    ok: true,
    findings: [
      {},
      {},
      { part: 'slot 1', verdict: 'note', text: 'not whole: a commit was cut off' },
      { part: 'data', verdict: 'note', text: /^1 blocks are behind/ },
      {},
    ],
  });
  t.equal(Buffer.compare(readFileSync(crashed), behind), 0, 'looking changes nothing');
  t.ok(inspectState(crashed, native).interrupted);
  t.same(
    open(crashed, {}, (state) => use(state, dataRead(2, 1)))[0]!.data,
    pattern(2, 2).subarray(0, 256),
  );
  t.match(checkState(fileOf(pattern(600, 1)), {}, native), {
    ok: false,
    findings: [{ part: 'file', verdict: 'wrong', text: /not an RPMB state/ }],
  });
  const holes = newPath();
  closeSync(openSync(holes, 'w', 0o600));
  truncateSync(holes, KEYED.length);
  const fd = openSync(holes, 'r+');
  writeFileSync(fd, KEYED.subarray(0, DATA_AT));
  closeSync(fd);
  if (statSync(holes).blocks * 512 < KEYED.length) {
    t.match(checkState(holes, {}, native).findings.at(-1), { part: 'space', verdict: 'note' });
    open(holes, {}, ({ warnings }) => t.match(warnings, [/has holes.*\(copy it/]));
  }
});

t.test('what a command line says of a new device', async (t) => {
  const path = newPath();
  createState(path, { size: SMALL }, native);
  const again = (initialCounter: number, key?: Uint8Array) =>
    open(path, {}, (state) =>
      provisionState(state, { initialCounter, ...(key === undefined ? {} : { key }) }, native),
    );
  t.same(again(1234), []);
  t.same(again(1234, KEY), [], 'the same again');
  t.match(inspectState(path, native), { writeCounter: 1234, keyProgrammed: true });
  t.match(again(1235, KEY), [/in use since before, so its counter stays at 1234/]);
  t.throws(() => again(1234, OTHER_KEY), { code: 'ERR_VDUSE_RPMB_PROVISIONED' });
  const bad = newPath();
  createState(bad, { size: SMALL, initialCounter: 5 }, native);
  open(bad, {}, (state) => {
    t.throws(() => provisionState(state, { initialCounter: 2 ** 32 }, native), /out of range/);
    t.match(provisionState(state, { initialCounter: 4 }, native), [/stays at 5/]);
    t.same(provisionState(state, { initialCounter: MAX_COUNTER }, native), []);
    t.equal(state.counter, MAX_COUNTER);
  });
});

t.test('offline: the same device without anybody serving it', async (t) => {
  const path = fileOf(KEYED);
  const endpoint = openOffline(path, {}, native);
  t.same(endpoint.config, Uint8Array.of(1, 32, 32));
  t.match(read(await endpoint.exchange(getCounter(), 1)), { result: 0, counter: 0, mac: true });
  t.equal((await endpoint.exchange(new Uint8Array(10), 1)).length, 0);
  t.equal((await endpoint.exchange(new Uint8Array(0), 1)).length, 0);
  const long = concat(dataWrite({ data: pattern(50, 1) }), resultRead());
  t.match(read(await endpoint.exchange(long, 1)), { type: 0x0300, result: Result.GeneralFailure });
  await endpoint.close();
  openState(path, {}, native).close();
});
