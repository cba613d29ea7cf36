// `tools/bench rpmb`: durable writes over the socket and offline, against what the file system
// itself does, and frames read; all taking turns.
import { closeSync, fdatasyncSync, openSync, writeSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { native } from '../dist/native/index.js';
import { openOffline } from '../dist/rpmb/index.js';
import { Backend, pinned } from './lib/backends.mjs';
import { machine, ROOT, run, VDUSE, versions } from './lib/machine.mjs';
import { createFolder, parseOptionsHere } from './lib/options.mjs';
import {
  connect,
  drivenWritesPerSecond,
  framesPerSecond,
  makeState,
  writesPerSecond,
} from './lib/rpmb.mjs';
import { median, printRun, table } from './lib/table.mjs';

const options = parseOptionsHere({
  rounds: { type: 'string' },
  seconds: { type: 'string' },
});

const rounds = Number(options.rounds ?? (options.quick ? 2 : 7));
const ms = Number(options.seconds ?? (options.quick ? 0.3 : 1)) * 1000;
/** Blocks a read request: what an eMMC part reads at once, and our default limit. */
const READ_BLOCKS = 32;
const PAGE = 4096;
/** Header and redo data of one block. */
const SLOT = 768;
const page = new Uint8Array(PAGE);

// This process is the client and the raw writer: what the daemon gets it must have too.
if (options.first) run('chrt', ['--rr', '--pid', '1', String(process.pid)]);
const cpu = availableParallelism() < 2 ? 0 : 1;
run('taskset', ['--pid', '--cpu-list', '0', String(process.pid)]);

const { fileSystem } = machine(options.dir);
if (fileSystem === 'tmpfs' || fileSystem === 'ramfs') {
  console.error(
    `rpmb: ${options.dir}: is a ${fileSystem}, whose syncs do nothing (give --dir DIR)`,
  );
  process.exit(64);
}

const folder = createFolder(options);
const socket = join(folder, 's');
const served = join(folder, 'served.rpmb');
const offline = join(folder, 'offline.rpmb');
makeState(served);
makeState(offline);

const raw = openSync(join(folder, 'raw'), 'w+');
writeSync(raw, new Uint8Array(1 << 20), 0, 1 << 20, 0);
fdatasyncSync(raw);

/** How often a second `work` can be done. */
function perSecond(work) {
  const begin = performance.now();
  let done = 0;
  for (; performance.now() - begin < ms; done++) work(done);
  return (done * 1000) / (performance.now() - begin);
}

/** A page overwritten in place and made durable: what any device on this file system must wait for. */
function overwrite(n) {
  page[0] = n;
  writeSync(raw, page, 0, PAGE, (n % 256) * PAGE);
  fdatasyncSync(raw);
}

/** What one commit writes and no more: a slot, a sync, a block that the next sync takes along. */
function bareCommit(n) {
  page[0] = n;
  writeSync(raw, page, 0, SLOT, (n % 2) * 4 * PAGE);
  fdatasyncSync(raw);
  writeSync(raw, page, 0, 256, (8 + (n % 248)) * PAGE);
}

const command = [
  ...pinned(cpu, options.first),
  ...[process.execPath, VDUSE, 'serve', served, '--type', 'rpmb', '--socket-path', socket],
];
const backend = await Backend.start(command, socket, () => {});
const online = await connect(socket);
const local = openOffline(offline, {}, native);

const WORK = {
  'raw: 4 KiB overwritten + fdatasync': () => perSecond(overwrite),
  'raw: the writes and the sync of a commit': () => perSecond(bareCommit),
  'write of one block, socket': () => drivenWritesPerSecond(online, ms),
  'write of one block, socket, the driver polls': () =>
    drivenWritesPerSecond(online, ms, { polls: true }),
  'write of one block, socket, library': () => writesPerSecond(online, ms),
  'write of one block, offline': () => writesPerSecond(local, ms),
  [`read frames, ${READ_BLOCKS} a request, socket`]: () =>
    framesPerSecond(online, ms, READ_BLOCKS, 1),
  [`the same, 4 requests in flight`]: () => framesPerSecond(online, ms, READ_BLOCKS, 4),
  [`read frames, ${READ_BLOCKS} a request, offline`]: () =>
    framesPerSecond(local, ms, READ_BLOCKS, 1),
};
const names = Object.keys(WORK);
const results = Object.fromEntries(names.map((name) => [name, []]));
// The first round compiles and does not count.
for (let round = -1; round < rounds; round++) {
  for (const [i] of names.entries()) {
    const name = names[(i + Math.max(0, round)) % names.length];
    const rate = await WORK[name]();
    if (round >= 0) results[name].push(rate);
  }
}
await online.close();
await local.close();
await backend.stop();
closeSync(raw);

const rawRates = results[names[0]];
const rows = names.map((name, i) => ({
  name,
  perSecond: median(results[name]),
  // Of each round, so that what the disk does meanwhile strikes both.
  ofRaw: i < 6 ? median(results[name].map((rate, round) => rate / rawRates[round])) : undefined,
}));
const result = {
  bench: 'rpmb',
  machine: machine(folder),
  versions: versions(),
  load: `one after the other unless said; ${rounds} interleaved runs of ${ms / 1000} s each, medians`,
  commands: { ours: command.join(' ').replaceAll(folder, 'DIR').replaceAll(`${ROOT}/`, '') },
  rows,
};
if (options.json) console.log(JSON.stringify(result));
else {
  printRun(result);
  table(
    ['what', 'a second', '÷ raw'],
    rows.map(({ name, perSecond, ofRaw }) => [name, Math.round(perSecond), ofRaw]),
  );
}
process.exit(0);
