// A daemon that is attached and detached a hundred times is as it was.
import {
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  writeSync,
} from 'node:fs';
import { check, equal, loadModules, note, run, SCRATCH, Server, until } from './harness.mjs';
import { PACKAGE } from './package.mjs';

// The addon for what Node lacks: aligned memory for O_DIRECT, and attaching without a process each time.
const { native } = await import(`${PACKAGE}dist/native/index.js`);

const FOLDER = `${SCRATCH}/soak`;
const ROUNDS = 100;
const EARLY = 10;
const BYTES = 256 << 10;
const GROWTH_KIB = 16 << 10;

/** What must not grow. */
function sizeOf(pid) {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  const maps = readFileSync(`/proc/${pid}/maps`, 'utf8').trim().split('\n');
  return {
    fds: readdirSync(`/proc/${pid}/fd`).length,
    // Those of files and of the device. The JavaScript heap has anonymous ones that come and go.
    mappings: maps.filter((line) => /\S+ \S+ \S+ \S+ [1-9]\d* +\S/.test(line)).length,
    allMappings: maps.length,
    rss: Number(/^VmRSS:\s*(\d+)/m.exec(status)[1]),
  };
}

/** Attach, write, read back, compare, detach; true when what came back is what was written. */
async function round(number, block, back) {
  await native.vdpaDeviceAdd('soak', 'vduse');
  if (!(await until(() => existsSync('/dev/vda')))) throw new Error(`round ${number}: no disk`);
  block.fill(number);
  back.fill(0);
  const at = number * BYTES;
  const disk = openSync('/dev/vda', constants.O_RDWR | constants.O_DIRECT);
  writeSync(disk, block, 0, BYTES, at);
  readSync(disk, back, 0, BYTES, at);
  closeSync(disk);
  await native.vdpaDeviceDelete('soak');
  return block.equals(back);
}

await run(async () => {
  loadModules();
  mkdirSync(FOLDER);
  const server = await Server.start([
    `${FOLDER}/s.img`,
    ...['--name', 'soak', '--size', '64M', '--state-dir', `${FOLDER}/state`],
  ]);
  const memory = native.allocate(2 * BYTES);
  const block = Buffer.from(memory.buffer, 0, BYTES);
  const back = Buffer.from(memory.buffer, BYTES, BYTES);
  let early;
  let equalRounds = 0;
  const start = Date.now();
  for (let number = 1; number <= ROUNDS; number++) {
    if (await round(number, block, back)) equalRounds++;
    if (number === EARLY) early = sizeOf(server.pid);
  }
  const late = sizeOf(server.pid);
  note(`${ROUNDS} rounds in ${((Date.now() - start) / 1000).toFixed(1)} s`);
  note(
    `after round ${EARLY}: ${JSON.stringify(early)}; after ${ROUNDS}: ${JSON.stringify(late)} (rss in KiB)`,
  );
  equal(equalRounds, ROUNDS, 'every round read what it wrote');
  equal(late.fds, early.fds, 'as many descriptors');
  equal(late.mappings, early.mappings, 'as many mappings');
  const more = late.allMappings - early.allMappings;
  check(more < ROUNDS - EARLY, 'anonymous ones do not grow round by round', `${more} more`);
  check(
    late.rss - early.rss <= GROWTH_KIB,
    'resident memory within 16 MiB',
    `${late.rss - early.rss} KiB more`,
  );
  equal(await server.stop(), 0, 'the server ends');
});
