// `tools/bench gc`: four million requests; how often does the thread that serves them collect?
import { spawn } from 'node:child_process';
import { closeSync, ftruncateSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { Backend } from './lib/backends.mjs';
import { machine, ROOT, run, VDUSE, versions } from './lib/machine.mjs';
import { createFolder, parseOptionsHere } from './lib/options.mjs';
import { table } from './lib/table.mjs';

const options = parseOptionsHere();

const REQUESTS = options.quick ? 200_000 : 4_000_000;
const WARM_REQUESTS = 400_000;
/** Sparse, and larger than 2 GiB: offsets that need more than 31 bits are the trap. */
const SIZE = 3 * 2 ** 30;
/** Writes fill the file, which is the disk's work: few blocks are enough. */
const WRITTEN = 2 ** 26;

const folder = createFolder(options);
const image = join(folder, 'disk.img');
const socket = join(folder, 's');
const fd = openSync(image, 'w');
ftruncateSync(fd, SIZE);
closeSync(fd);
// Into the page cache.
run('dd', [`if=${image}`, 'of=/dev/null', 'bs=1M', 'status=none']);

const priority = options.first ? ['chrt', '-r', '1'] : [];
const command = [
  ...priority,
  process.execPath,
  '--trace-gc',
  VDUSE,
  'serve',
  image,
  '--socket-path',
  socket,
  '--json',
];

/**
 * Collections so far, by the heap they were in: --trace-gc prints "[pid:isolate]" before each. The
 * first to collect, while the program is loaded, is the main thread's; the others are the engine's.
 */
const collections = new Map();
const backend = await Backend.start(command, socket, (line) => {
  const heap = /^\[\d+:(0x[0-9a-f]+)\]/.exec(line)?.[1];
  if (heap !== undefined) collections.set(heap, (collections.get(heap) ?? 0) + 1);
});

const client = spawn(
  [...priority, process.execPath][0],
  [
    ...priority,
    process.execPath,
    join(ROOT, 'bench/lib/client.mjs'),
    socket,
    `${backend.pid}`,
  ].slice(1),
  { stdio: ['pipe', 'pipe', 'inherit'] },
);
const answers = createInterface({ input: client.stdout })[Symbol.asyncIterator]();
async function load(requests, write, depth) {
  client.stdin.write(
    `${JSON.stringify({ write, depth, range: write ? WRITTEN : SIZE, requests, seconds: 600, warm: 0 })}\n`,
  );
  return JSON.parse((await answers.next()).value);
}

const rows = [];
// Everything is compiled, and what is made once is made, before the steady loop begins.
for (const write of [false, true]) await load(WARM_REQUESTS, write, 32);
for (const [op, depth] of [
  ['read', 32],
  ['read', 128],
  ['write', 32],
  ['write', 1],
]) {
  const before = new Map(collections);
  const share = Math.ceil(REQUESTS / (depth === 1 ? 20 : 3));
  const { requests } = await load(share, op === 'write', depth);
  // What was printed last is still on its way.
  await new Promise((resolve) => setTimeout(resolve, 200));
  const [main, ...engine] = [...collections].map(([heap, n]) => n - (before.get(heap) ?? 0));
  rows.push({ op, depth, requests, engine: engine.reduce((a, b) => a + b, 0), main });
}
client.stdin.end();
await backend.stop();

const result = {
  bench: 'gc',
  machine: machine(folder),
  versions: versions(),
  load: `4 KiB random in a sparse image of ${SIZE / 2 ** 30} GiB, after ${2 * WARM_REQUESTS} requests to warm up`,
  commands: { ours: command.join(' ').replaceAll(folder, 'DIR') },
  rows,
};
if (options.json) console.log(JSON.stringify(result));
else {
  console.log(`${result.load}\n${result.commands.ours}\n`);
  table(
    ['op', 'QD', 'requests', "collections in the engine's threads", 'in the main thread'],
    rows.map((row) => [row.op, row.depth, row.requests, row.engine, row.main]),
  );
}
process.exitCode = rows.every((row) => row.engine === 0) ? 0 : 1;
