// `tools/bench instructions`: what a request costs in instructions of user space, ours and in C, part by part. Counted,
// not timed: what else the machine does hardly shows (C spins, and how long depends on its driver).
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, ftruncateSync, openSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { Backend, buildFloor } from './lib/backends.mjs';
import { difference, readCounts } from './lib/callgrind.mjs';
import { machine, ROOT, versions } from './lib/machine.mjs';
import { createFolder, parseOptionsHere } from './lib/options.mjs';
import { table } from './lib/table.mjs';

const options = parseOptionsHere({ depths: { type: 'string' } });

const depth = Number(options.depths ?? 32);
/** By then all is compiled; what is counted is the rest. */
const WARM = options.quick ? 400_000 : 600_000;
const COUNTED = options.quick ? 100_000 : 400_000;
const DISK = 2 ** 26;

const folder = createFolder(options);
const floor = buildFloor(folder);
const counts = join(folder, 'counts');
const CALLGRIND = ['--tool=callgrind', '--vgdb=no', `--callgrind-out-file=${counts}`];

/** What a function's instructions are for, by its name; the driver's are left out. */
const PARTS = [
  ['driver', /^JS: (lib\/engine-alone|virtio\/(split-driver|driver))/],
  ['the copy', /mem(cpy|move)|: copy$|copyRow/],
  ['JavaScript: rings', /^JS: virtio\//],
  ['JavaScript: requests', /^JS: block\//],
  ['JavaScript: store, rows', /^JS: (store|native)\//],
  ['JavaScript: engine, loop', /^JS: reactor\//],
  ['the addon', /^vduse\.node: /],
  ['C', /^floor: /],
  ["Node, V8, libc, the driver's too", /./],
];

function parts(functions) {
  const sums = new Map(PARTS.map(([name]) => [name, 0]));
  for (const [name, count] of functions) {
    const part = PARTS.find(([, pattern]) => pattern.test(name))[0];
    sums.set(part, sums.get(part) + count);
  }
  sums.delete('driver');
  return sums;
}

/** The instructions of our engine that serves so many requests. */
function runOurs(op, requests) {
  const program = [
    process.execPath,
    // Whatever is compiled is compiled before the program goes on, so that all runs are alike.
    '--no-concurrent-recompilation',
    '--perf-basic-prof',
    join(ROOT, 'bench/lib/engine-alone.mjs'),
    op,
    String(depth),
    String(Math.ceil(requests / depth)),
  ];
  const done = spawnSync('valgrind', ['-q', ...CALLGRIND, ...program], {
    cwd: folder,
    encoding: 'utf8',
  });
  if (done.status !== 0) throw new Error(`valgrind: ${done.error?.message ?? done.stderr}`);
  const map = `/tmp/perf-${done.pid}.map`;
  const read = readCounts(counts, map);
  rmSync(map);
  return read;
}

/** The instructions of the design in C that serves so many requests. */
async function runFloor(op, requests) {
  const image = join(folder, 'disk.img');
  const socket = join(folder, 's');
  const fd = openSync(image, 'w');
  ftruncateSync(fd, DISK);
  closeSync(fd);
  const backend = await Backend.start(
    ['valgrind', '-q', ...CALLGRIND, floor, image, socket],
    socket,
  );
  const client = spawn(
    process.execPath,
    [join(ROOT, 'bench/lib/client.mjs'), socket, `${backend.pid}`],
    { stdio: ['pipe', 'pipe', 'inherit'] },
  );
  const load = { write: op === 'write', depth, range: DISK, requests, seconds: 600, warm: 0 };
  client.stdin.end(`${JSON.stringify(load)}\n`);
  await once(createInterface({ input: client.stdout }), 'line');
  await backend.stop();
  return readCounts(counts);
}

const rows = [];
for (const op of ['read', 'write']) {
  console.error(op);
  const ours = parts(difference(runOurs(op, WARM), runOurs(op, WARM + COUNTED), COUNTED));
  const before = await runFloor(op, WARM);
  const inC = parts(difference(before, await runFloor(op, WARM + COUNTED), COUNTED));
  for (const [part] of PARTS.slice(1)) {
    rows.push({ op, part, ours: Math.round(ours.get(part)), floor: Math.round(inC.get(part)) });
  }
}

const result = {
  bench: 'instructions',
  machine: machine(folder),
  versions: versions(),
  load: `4 KiB in batches of ${depth}, cached, indirect tables; ${COUNTED} requests after ${WARM}; user space only`,
  rows,
};
if (options.json) console.log(JSON.stringify(result));
else {
  console.log(`${result.load}; the driver not counted, C spinning included\n`);
  table(
    ['op', 'instructions a request', 'ours', 'the design in C'],
    rows.map((row) => [row.op, row.part, row.ours, row.floor]),
  );
}
