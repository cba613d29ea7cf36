// `tools/bench vduse`: disks over VDUSE on stock kernels, in the test machine, where time is counted
// in instructions: only ratios within one boot mean anything.
import { spawnSync } from 'node:child_process';
import { machine, ROOT, versions } from './lib/machine.mjs';
import { parseOptions } from './lib/options.mjs';
import { table } from './lib/table.mjs';

const options = parseOptions({
  kernel: { type: 'string', default: '6.12,7.2' },
});

const rows = [];
const kernels = {};
let commands = {};
for (const version of options.kernel.split(',')) {
  const program = ['node', `${ROOT}/bench/guest/vduse.mjs`, options.quick ? 'quick' : 'full'];
  const done = spawnSync(
    `${ROOT}/tools/vm`,
    ['--icount', '--kernel', version, '--timeout', '1800', '--', ...program],
    { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'], maxBuffer: 1 << 26 },
  );
  if (done.status !== 0) {
    process.stderr.write(done.stdout);
    process.exit(done.status ?? 1);
  }
  const line = done.stdout.split('\n').findLast((text) => text.startsWith('{"kernel"'));
  const { kernel, results } = JSON.parse(line);
  kernels[version] = kernel;
  commands = Object.fromEntries(
    Object.entries(results).map(([name, { command }]) => [name, command]),
  );
  for (const [i, row] of results.ours.rows.entries()) {
    const iops = (name) => Math.round(results[name].rows[i].iops);
    rows.push({
      kernel: version,
      ...row,
      iops: iops('ours'),
      referenceIops: iops('reference'),
      loopIops: iops('loop'),
      ratio: row.iops / results.reference.rows[i].iops,
      loopRatio: row.iops / results.loop.rows[i].iops,
    });
  }
}

const result = {
  bench: 'vduse',
  machine: { ...machine(ROOT), kernels, note: 'emulated, one CPU, time counted in instructions' },
  versions: versions(),
  load: 'fio libaio, direct, 4 KiB, scheduler none, image on tmpfs',
  commands,
  rows,
};
if (options.json) console.log(JSON.stringify(result));
else {
  console.log(`${result.load}; ${result.machine.note}`);
  for (const [name, command] of Object.entries(commands)) console.log(`${name}: ${command}`);
  console.log();
  table(
    [
      'kernel',
      'op',
      'QD',
      'when',
      'ours',
      'reference',
      'loop',
      '÷ reference',
      '÷ loop',
      'interrupts a request',
    ],
    rows.map((row) => [
      row.kernel,
      row.op,
      row.depth,
      row.when,
      row.iops,
      row.referenceIops,
      row.loopIops,
      row.ratio,
      row.loopRatio,
      row.interruptsPerRequest,
    ]),
  );
}
