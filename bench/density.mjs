// `tools/bench density`: many vhost-user devices in one process, each with a connected front end.
import { spawn } from 'node:child_process';
import { closeSync, ftruncateSync, openSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { VhostUserFrontend } from '../dist/frontend/index.js';
import { machine, VDUSE, versions } from './lib/machine.mjs';
import { createFolder, parseOptionsHere } from './lib/options.mjs';
import { anonymousKiB, cpuSeconds, threads, voluntarySwitches } from './lib/process.mjs';
import { table } from './lib/table.mjs';

const options = parseOptionsHere();

const COUNTS = options.quick ? [1, 16] : [1, 16, 64, 256];
const IDLE_SECONDS = options.quick ? 2 : 10;
/** V8 gives the memory of the start back within this time, in some dozen steps, and then rests. */
const SETTLE_MS = options.quick ? 1000 : 25_000;
const QUEUE_SIZE = 256;

const folder = createFolder(options);

function configOf(count) {
  const devices = Array.from({ length: count }, (_, i) => {
    const image = join(folder, `d${i}.img`);
    const fd = openSync(image, 'w');
    ftruncateSync(fd, 2 ** 24);
    closeSync(fd);
    return { name: `d${i}`, image, queueSize: QUEUE_SIZE, socketPath: join(folder, `${i}.s`) };
  });
  const path = join(folder, `${count}.json`);
  writeFileSync(path, JSON.stringify({ devices }));
  return { path, sockets: devices.map(({ socketPath }) => socketPath) };
}

async function measure(count) {
  const { path, sockets } = configOf(count);
  const began = performance.now();
  const child = spawn(process.execPath, [VDUSE, 'serve', '--config', path, '--json'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const ended = new Promise((resolve) => child.once('exit', resolve));
  let ready = 0;
  for await (const line of createInterface({ input: child.stdout })) {
    if (JSON.parse(line).event === 'ready' && ++ready === count) break;
  }
  if (ready < count) throw new Error(`${ready} of ${count} devices became ready`);
  const startMs = performance.now() - began;
  const frontends = [];
  for (const socket of sockets) {
    const frontend = await VhostUserFrontend.connect({ path: socket });
    // Little memory for buffers: it is this end's, and shared.
    await frontend.start({ queueSize: QUEUE_SIZE, bufferBytes: 65536 });
    frontends.push(frontend);
  }
  await delay(SETTLE_MS);
  const rssAnonKiB = anonymousKiB(child.pid);
  const cpuBefore = cpuSeconds(child.pid);
  const before = voluntarySwitches(child.pid);
  await delay(IDLE_SECONDS * 1000);
  const wakeups = voluntarySwitches(child.pid) - before;
  const idleCpuMs = (cpuSeconds(child.pid) - cpuBefore) * 1000;
  const threadCount = threads(child.pid);
  for (const frontend of frontends) await frontend.close();
  child.kill('SIGTERM');
  await ended;
  return { devices: count, startMs, rssAnonKiB, threads: threadCount, wakeups, idleCpuMs };
}

const rows = [];
for (const count of COUNTS) {
  const row = await measure(count);
  const first = rows[0] ?? row;
  const more = row.devices - first.devices;
  row.kiBPerDevice = more > 0 ? (row.rssAnonKiB - first.rssAnonKiB) / more : undefined;
  rows.push(row);
}

const result = {
  bench: 'density',
  machine: machine(folder),
  versions: versions(),
  load: `vhost-user devices with one queue of ${QUEUE_SIZE}, each with a connected front end; idle for ${IDLE_SECONDS} s`,
  commands: { ours: `node ${VDUSE} serve --config FILE --json` },
  rows,
};
if (options.json) console.log(JSON.stringify(result));
else {
  console.log(`${result.load}\n`);
  table(
    [
      'devices',
      'ready after ms',
      'RssAnon KiB',
      'KiB a further device',
      'threads',
      'wake-ups',
      'CPU ms',
    ],
    rows.map((row) => [
      row.devices,
      Math.round(row.startMs),
      row.rssAnonKiB,
      row.kiBPerDevice === undefined ? undefined : Math.round(row.kiBPerDevice),
      row.threads,
      row.wakeups,
      Math.round(row.idleCpuMs),
    ]),
  );
}
process.exit(0);
