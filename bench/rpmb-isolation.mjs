// `tools/bench rpmb-isolation`: a disk in the same process as an RPMB, while that one writes
// to a store that takes 5 ms for each step, and while it is idle.
import { spawn } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { Backend, pinned } from './lib/backends.mjs';
import { machine, ROOT, run, versions } from './lib/machine.mjs';
import { createFolder, parseOptionsHere } from './lib/options.mjs';
import { makeState } from './lib/rpmb.mjs';
import { median, printRun, table } from './lib/table.mjs';

const options = parseOptionsHere({
  rounds: { type: 'string' },
  seconds: { type: 'string' },
});

const rounds = Number(options.rounds ?? (options.quick ? 2 : 25));
const seconds = Number(options.seconds ?? (options.quick ? 0.5 : 0.6));
const SIZE = 256 << 20;
const DEPTHS = [1, 32];

const folder = createFolder(options);
const path = (name) => join(folder, name);
run('dd', ['if=/dev/zero', `of=${path('disk')}`, 'bs=4k', `count=${SIZE / 4096}`, 'status=none']);
makeState(path('state'));

const there = availableParallelism() < 2 ? 0 : 1;
const program = (name, ...args) => [process.execPath, join(ROOT, 'bench/lib', name), ...args];
const command = [
  ...pinned(there, options.first),
  ...program('isolation-server.mjs', ...['disk', 'state', 'disk.s', 'rpmb.s'].map(path)),
];
const backend = await Backend.start(command, path('rpmb.s'));

/** A program that answers each line with one. */
class Client {
  constructor(args) {
    const [first, ...rest] = [...pinned(0, options.first), ...args];
    this.child = spawn(first, rest, { stdio: ['pipe', 'pipe', 'inherit'] });
    this.lines = createInterface({ input: this.child.stdout })[Symbol.asyncIterator]();
  }

  async ask(question) {
    this.child.stdin.write(`${JSON.stringify(question)}\n`);
    const { value, done } = await this.lines.next();
    if (done) throw new Error('a client failed');
    return JSON.parse(value);
  }

  end() {
    this.child.kill();
  }
}

const disk = new Client(program('client.mjs', path('disk.s'), String(backend.pid)));
const rpmb = new Client(program('rpmb-load.mjs', path('rpmb.s')));

async function measure(depth, busy) {
  // It begins before the disk's load and ends after it.
  const writes = busy ? rpmb.ask(seconds * 1000 + 600) : undefined;
  await new Promise((resolve) => setTimeout(resolve, 100));
  const { iops } = await disk.ask({
    ...{ write: false, depth, range: SIZE, seconds, warm: 0.2 },
  });
  return { iops, writes: (await writes) ?? 0 };
}

const results = new Map(DEPTHS.map((depth) => [depth, { idle: [], busy: [] }]));
for (let round = -1; round < rounds; round++) {
  for (const depth of DEPTHS) {
    const order = round % 2 === 0 ? [false, true] : [true, false];
    for (const busy of order) {
      const result = await measure(depth, busy);
      if (round >= 0) results.get(depth)[busy ? 'busy' : 'idle'].push(result);
    }
  }
}
for (const client of [disk, rpmb]) client.end();
await backend.stop();

const rows = DEPTHS.map((depth) => {
  const { idle, busy } = results.get(depth);
  return {
    depth,
    idleIops: median(idle.map(({ iops }) => iops)),
    busyIops: median(busy.map(({ iops }) => iops)),
    ratio: median(busy.map(({ iops }, round) => iops / idle[round].iops)),
    rpmbWrites: median(busy.map(({ writes }) => writes)),
  };
});
const result = {
  bench: 'rpmb-isolation',
  machine: machine(folder),
  versions: versions(),
  load: `4 KiB random cached reads of a disk; an RPMB in the same process idle, then writing to a store that takes 5 ms a step; ${rounds} interleaved runs of ${seconds} s each, medians`,
  commands: { ours: command.join(' ').replaceAll(folder, 'DIR').replaceAll(`${ROOT}/`, '') },
  rows,
};
if (options.json) console.log(JSON.stringify(result));
else {
  printRun(result);
  table(
    ['QD', 'IOPS, RPMB idle', 'IOPS, RPMB writing', 'ratio', 'RPMB writes a second'],
    rows.map((row) => [
      row.depth,
      Math.round(row.idleIops),
      Math.round(row.busyIops),
      row.ratio,
      row.rpmbWrites,
    ]),
  );
}
process.exit(0);
