import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import {
  type DeviceIdentity,
  firstDifference,
  readRecord,
  writeRecord,
} from '../../lib/daemon/device-record.ts';
import { findStateDirectory, StateDirectory } from '../../lib/daemon/state-directory.ts';

const IDENTITY: DeviceIdentity = {
  image: '/srv/d.img',
  inode: '1:2',
  capacity: 4096,
  queues: 2,
  queueSize: 256,
  ring: 'split',
  serial: 'S',
  deviceId: 2,
  features: '300000000',
  config: '00',
};
const RECORD = {
  name: 'disk0',
  identity: IDENTITY,
  status: 15,
  driverFeatures: '300000000',
  queues: [
    { index: 0, position: { avail: 65535, used: 7 } },
    { index: 1, position: { avail: 0, used: 0 } },
  ],
};

t.test('a record is written whole and private, and read again', async (t) => {
  const states = StateDirectory.open(join(t.testdir(), 'made/on/the/way'));
  t.equal(statSync(states.path).mode & 0o777, 0o700);
  writeRecord(states, RECORD);
  t.equal(statSync(states.file('disk0')).mode & 0o777, 0o600);
  t.strictSame(readRecord(states, 'disk0'), { version: 1, ...RECORD });
  t.notOk(existsSync(`${states.file('disk0')}.new`));
  states.remove('disk0');
  states.remove('disk0');
  t.equal(readRecord(states, 'disk0'), undefined);
});

t.test('what is no record of ours is refused, with its path and a remedy', async (t) => {
  const folder = t.testdir();
  const states = StateDirectory.open(join(folder, 'state'));
  const file = states.file('disk0');
  const written = JSON.stringify({ version: 1, ...RECORD });
  const altered = (change: object) => JSON.stringify({ version: 1, ...RECORD, ...change });
  const cases: [string, string, RegExp][] = [
    ['nothing', '', /damaged/],
    ['cut short', written.slice(0, -1), /damaged/],
    ['no JSON', '\0\xff garbage', /damaged/],
    ['too large', written.padEnd(2 << 20), /not written by this program/],
    ['no object', 'null', /not a record/],
    ['another version', altered({ version: 2 }), /version 2, not 1/],
    ['another device', altered({ name: 'disk1' }), /of device disk1/],
    ['no identity', altered({ identity: null }), /no identity/],
    ['status out of range', altered({ status: 256 }), /no status/],
    ['features that are no number', altered({ driverFeatures: '0x1' }), /no driver features/],
    [
      'more queues than there are',
      altered({ queues: Array(3).fill(RECORD.queues[0]) }),
      /no queues/,
    ],
    ['a queue twice', altered({ queues: Array(2).fill(RECORD.queues[0]) }), /a queue twice/],
    ['a queue out of range', altered({ queues: [{ ...RECORD.queues[0], index: 2 }] }), /a queue/],
    [
      'a position out of range',
      altered({ queues: [{ index: 0, position: { avail: 65536, used: 0 } }] }),
      /a queue/,
    ],
  ];
  for (const [name, content, why] of cases) {
    writeFileSync(file, content);
    const refusal = new RegExp(`^state file ${file}: .*${why.source}.* \\(remove it\\)$`);
    t.throws(
      () => readRecord(states, 'disk0'),
      { code: 'ERR_VDUSE_STATE', message: refusal },
      name,
    );
    t.equal(readFileSync(file, 'utf8'), content, `${name}: left as it was`);
    states.remove('disk0');
  }
});

t.test('only a plain file of ours is read; nothing is followed', async (t) => {
  const folder = t.testdir({ elsewhere: JSON.stringify({ version: 1, ...RECORD }), state: {} });
  chmodSync(join(folder, 'state'), 0o700);
  const states = StateDirectory.open(join(folder, 'state'));
  const file = states.file('disk0');
  const refused = (name: string) =>
    t.throws(
      () => readRecord(states, 'disk0'),
      { code: 'ERR_VDUSE_STATE', message: /\(remove it\)$/ },
      name,
    );

  symlinkSync(join(folder, 'elsewhere'), file);
  refused('a symbolic link');
  states.remove('disk0');
  t.ok(existsSync(join(folder, 'elsewhere')), 'what it pointed to stays');

  execFileSync('mkfifo', [file]);
  refused('a pipe, without waiting for a writer');
  states.remove('disk0');

  mkdirSync(file);
  refused('a directory');
  execFileSync('rmdir', [file]);

  if (process.getuid!() === 0) {
    writeFileSync(file, JSON.stringify({ version: 1, ...RECORD }));
    chownSync(file, 65534, 65534);
    refused("another user's file");
  }
});

t.test('writing replaces a link and does not follow it', async (t) => {
  const folder = t.testdir({ victim: 'untouched' });
  const states = StateDirectory.open(join(folder, 'state'));
  const victim = join(folder, 'victim');
  symlinkSync(victim, states.file('disk0'));
  symlinkSync(victim, `${states.file('disk0')}.new`);
  writeRecord(states, RECORD);
  t.ok(lstatSync(states.file('disk0')).isFile());
  t.equal(readFileSync(victim, 'utf8'), 'untouched');
});

t.test('a directory where others could write, or that is none, is refused', async (t) => {
  const folder = t.testdir({ open: {}, file: '', real: {} });
  chmodSync(join(folder, 'open'), 0o770);
  symlinkSync(join(folder, 'real'), join(folder, 'link'));
  const refused = (name: string, why: RegExp) =>
    t.throws(
      () => StateDirectory.open(join(folder, name)),
      { code: 'ERR_VDUSE_STATE', message: why },
      name,
    );
  refused('open', /others could write there \(.*--state-dir\)/);
  refused('file', /not a directory \(.*--state-dir\)/);
  refused('file/below', /\(.*--state-dir\)/);
  refused('link', /not a directory \(.*--state-dir\)/);
  if (process.getuid!() === 0) {
    mkdirSync(join(folder, 'foreign'), 0o700);
    chownSync(join(folder, 'foreign'), 65534, 65534);
    refused('foreign', /others could write there/);
  }
});

t.test('which directory it is', async (t) => {
  const folder = t.testdir();
  const at = (name: string) => join(folder, name);
  const environment = {
    VDUSE_STATE_DIR: at('named'),
    RUNTIME_DIRECTORY: `${at('unit')}:${at('other')}`,
  };
  t.equal(findStateDirectory(at('asked'), environment)?.path, at('asked'));
  t.equal(findStateDirectory(undefined, environment)?.path, at('named'));
  const { RUNTIME_DIRECTORY } = environment;
  t.equal(findStateDirectory(undefined, { RUNTIME_DIRECTORY })?.path, at('unit'));
  writeFileSync(at('file'), '');
  t.throws(
    () => findStateDirectory(at('file'), {}),
    { code: 'ERR_VDUSE_STATE' },
    'no silent other',
  );
});

t.test('the first difference between two servers, in words', async (t) => {
  const change = (to: Record<string, string | number>) =>
    firstDifference(IDENTITY, { ...IDENTITY, ...to });
  t.equal(change({}), undefined);
  t.equal(change({ queues: 1, config: '01' }), 'queues 2, now 1');
  t.equal(change({ queueSize: 128 }), 'queue size 256, now 128');
  t.equal(change({ serial: 'T', features: '0' }), 'serial S, now T');
});
