// `tools/bench vhost-user`: this program, qemu-storage-daemon and the design in C, one after the
// other, again and again, on the same image under the same load.
import { spawn } from 'node:child_process';
import { rmSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { Backend, buildFloor, CONTESTANTS, pinned } from './lib/backends.mjs';
import { machine, ROOT, run, versions } from './lib/machine.mjs';
import { createFolder, parseOptionsHere } from './lib/options.mjs';
import { median, printRun, table } from './lib/table.mjs';

const options = parseOptionsHere({
  rounds: { type: 'string' },
  seconds: { type: 'string' },
  only: { type: 'string' },
  depths: { type: 'string' },
  ops: { type: 'string', default: 'read,write' },
  cache: { type: 'string', default: 'cached,direct' },
  against: { type: 'string' },
  packed: { type: 'boolean', default: false },
});

const SIZE = 2 ** 30;
const rounds = Number(options.rounds ?? (options.quick ? 1 : 4));
const seconds = Number(options.seconds ?? (options.quick ? 0.5 : 1.5));
const warm = options.quick ? 0.5 : 1;
const depths = (options.depths ?? '1,8,32,128').split(',').map(Number);
const ops = options.ops.split(',');
const caches = options.cache.split(',');
const alone = availableParallelism() < 2;

const folder = createFolder(options);
const image = join(folder, 'disk.img');
const socket = join(folder, 's');
const floor = buildFloor(folder);

const contestants = { ...CONTESTANTS };
if (options.against !== undefined) {
  contestants.against = (o) => CONTESTANTS.ours({ ...o, program: options.against });
}
if (options.packed) contestants.packed = CONTESTANTS.ours;
const names = options.only?.split(',') ?? Object.keys(contestants);

function command(name, direct) {
  return [
    ...pinned(alone ? 0 : 1, options.first),
    ...contestants[name]({ image, socket, direct, floor }),
  ];
}

/** All depths of one contestant. */
async function measure(name, direct, op) {
  const backend = await Backend.start(command(name, direct), socket);
  const client = [
    ...pinned(0, options.first),
    process.execPath,
    join(ROOT, 'bench/lib/client.mjs'),
    socket,
    String(backend.pid),
    name === 'packed' ? 'packed' : 'split',
  ];
  const child = spawn(client[0], client.slice(1), { stdio: ['pipe', 'pipe', 'inherit'] });
  try {
    for (const depth of depths) {
      child.stdin.write(
        `${JSON.stringify({ write: op === 'write', depth, range: SIZE, seconds, warm })}\n`,
      );
    }
    child.stdin.end();
    const results = [];
    for await (const line of createInterface({ input: child.stdout })) {
      results.push(JSON.parse(line));
    }
    if (results.length !== depths.length) throw new Error(`${name}: the client failed`);
    return results;
  } finally {
    child.kill();
    await backend.stop();
  }
}

/**
 * Written anew, in pieces of 4 KiB: a page cache that was filled in large pieces holds large folios,
 * and a small write into one of those costs ext4 20 µs (it walks the buffers of all of it).
 */
function createImage() {
  rmSync(image, { force: true });
  const count = `count=${SIZE / 4096}`;
  run('dd', ['if=/dev/zero', `of=${image}`, 'bs=4k', count, 'conv=fsync', 'status=none']);
}

const runs = new Map();
for (let round = 0; round < rounds; round++) {
  for (const cache of caches) {
    for (const op of ops) {
      createImage();
      // Each begins once: what the disk still has to do for the one before is nobody's alone.
      const order = names.map((_, i) => names[(i + round) % names.length]);
      for (const name of order) {
        const results = await measure(name, cache === 'direct', op);
        for (const [i, result] of results.entries()) {
          const key = JSON.stringify([cache, op, depths[i], name]);
          runs.set(key, [...(runs.get(key) ?? []), result]);
        }
      }
      if (!options.json) process.stderr.write(`round ${round + 1}/${rounds}: ${cache} ${op}\n`);
    }
  }
}

const rows = [];
for (const cache of caches) {
  for (const op of ops) {
    for (const depth of depths) {
      const found = {};
      for (const name of names) {
        const of = runs.get(JSON.stringify([cache, op, depth, name]));
        if (of === undefined) continue;
        const middle = (field) => median(of.map((result) => result[field]));
        found[name] = {
          iops: Math.round(middle('iops')),
          p50us: middle('p50'),
          p99us: middle('p99'),
          cpuUs: middle('cpuUs'),
          kicks: middle('kicks'),
          sleeps: middle('sleeps'),
        };
      }
      const ratio = (name, field) =>
        found.ours && found[name] ? found.ours[field] / found[name][field] : undefined;
      rows.push({
        cache,
        op,
        depth,
        ...found,
        iopsRatio: ratio('reference', 'iops'),
        cpuRatio: ratio('reference', 'cpuUs'),
        iopsToFloor: ratio('floor', 'iops'),
        cpuToFloor: ratio('floor', 'cpuUs'),
        iopsToAgainst: ratio('against', 'iops'),
        cpuToAgainst: ratio('against', 'cpuUs'),
        iopsToPacked: ratio('packed', 'iops'),
        cpuToPacked: ratio('packed', 'cpuUs'),
      });
    }
  }
}

const result = {
  bench: 'vhost-user',
  machine: machine(folder),
  versions: versions(),
  load: `4 KiB random, ${SIZE >> 20} MiB image, queue of 256, ${rounds} runs of ${seconds} s each, medians`,
  pinned: alone ? 'one CPU for all' : 'client on CPU 0, back end on CPU 1',
  commands: Object.fromEntries(
    names.map((name) => [
      name,
      command(name, caches[0] === 'direct')
        .join(' ')
        .replaceAll(folder, 'DIR'),
    ]),
  ),
  rows,
};

if (options.json) console.log(JSON.stringify(result));
else {
  printRun(result);
  const further = [
    ['against', 'iopsToAgainst', 'cpuToAgainst'],
    ['packed', 'iopsToPacked', 'cpuToPacked'],
  ].filter(([name]) => names.includes(name));
  table(
    [
      'cache',
      'op',
      'QD',
      ...names.flatMap((name) => [`${name} kIOPS`, 'p50 µs', 'p99 µs', 'CPU µs']),
      'IOPS ÷ ref',
      'CPU ÷ ref',
      'IOPS ÷ C',
      'CPU ÷ C',
      ...further.flatMap(([name]) => [`IOPS ÷ ${name}`, `CPU ÷ ${name}`]),
    ],
    rows.map((row) => [
      row.cache,
      row.op,
      row.depth,
      ...names.flatMap((name) => {
        const of = row[name];
        return of
          ? [of.iops / 1000, of.p50us, of.p99us, of.cpuUs]
          : [undefined, undefined, undefined, undefined];
      }),
      row.iopsRatio,
      row.cpuRatio,
      row.iopsToFloor,
      row.cpuToFloor,
      ...further.flatMap(([, iops, cpu]) => [row[iops], row[cpu]]),
    ]),
  );
}
