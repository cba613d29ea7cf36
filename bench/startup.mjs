// `tools/bench startup`: from the command to a socket that answers, against qemu-storage-daemon.
import { closeSync, ftruncateSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { VhostUserFrontend } from '../dist/frontend/index.js';
import { Backend, CONTESTANTS } from './lib/backends.mjs';
import { machine, versions } from './lib/machine.mjs';
import { createFolder, parseOptionsHere } from './lib/options.mjs';
import { anonymousKiB, cpuSeconds } from './lib/process.mjs';
import { median, table } from './lib/table.mjs';

const options = parseOptionsHere();

const ROUNDS = options.quick ? 2 : 10;
const folder = createFolder(options);
const image = join(folder, 'disk.img');
const socket = join(folder, 's');
const fd = openSync(image, 'w');
ftruncateSync(fd, 2 ** 30);
closeSync(fd);

const NAMES = ['ours', 'reference'];
const priority = options.first ? ['chrt', '-r', '1'] : [];
const commandOf = (name) => [...priority, ...CONTESTANTS[name]({ image, socket, direct: false })];

const runs = { ours: [], reference: [] };
for (let round = 0; round < ROUNDS; round++) {
  for (const name of NAMES) {
    const began = performance.now();
    const backend = await Backend.start(commandOf(name), socket);
    const frontend = await VhostUserFrontend.connect({ path: socket });
    const readyMs = performance.now() - began;
    runs[name].push({
      readyMs,
      cpuMs: cpuSeconds(backend.pid) * 1000,
      rssAnonKiB: anonymousKiB(backend.pid),
    });
    await frontend.close();
    await backend.stop();
  }
}

const rows = NAMES.map((name) => ({
  name,
  ...Object.fromEntries(
    ['readyMs', 'cpuMs', 'rssAnonKiB'].map((key) => [
      key,
      median(runs[name].map((run) => run[key])),
    ]),
  ),
}));
const result = {
  bench: 'startup',
  machine: machine(folder),
  versions: versions(),
  load: `a vhost-user device of one queue, medians of ${ROUNDS}, until a front end has negotiated`,
  commands: Object.fromEntries(
    NAMES.map((name) => [name, commandOf(name).join(' ').replaceAll(folder, 'DIR')]),
  ),
  rows,
};
if (options.json) console.log(JSON.stringify(result));
else {
  console.log(`${result.load}\n`);
  table(
    ['program', 'ready after ms', 'CPU ms', 'RssAnon KiB'],
    rows.map((row) => [
      row.name,
      Math.round(row.readyMs),
      Math.round(row.cpuMs),
      Math.round(row.rssAnonKiB),
    ]),
  );
}
