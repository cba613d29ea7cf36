/** A front end that is killed with requests under way: the state is as before or after each, the next is served. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { VhostUserFrontend } from '../../lib/frontend/index.ts';
import { native } from '../../lib/native/index.ts';
import { RpmbClient } from '../../lib/rpmb/client.ts';
import { parseConfig } from '../../lib/rpmb/config.ts';
import { createState } from '../../lib/rpmb/state/create.ts';
import { KEY, temporaryFolder } from './harness.ts';
import { Daemon } from './programs.ts';

t.setTimeout(120_000);

const ROUNDS = 5;
/** Writes in flight; each of four blocks, to one place after the other. */
const DEPTH = 4;
const BLOCKS = 4;
const PLACES = 64;

const DIST = new URL('../../dist/', import.meta.url);
const module = (name: string) => JSON.stringify(fileURLToPath(new URL(name, DIST)));

/** Writes without end, says on fd 1 (a byte each) what was answered, and dies of SIGKILL: path, key in hex, counter, milliseconds. */
const FRONT_END = `
import { writeSync } from 'node:fs';
import { VhostUserFrontend } from ${module('frontend/index.js')};
import { makeWrite } from ${module('rpmb/client.js')};
const [path, key, from, ms] = process.argv.slice(1);
const frontend = await VhostUserFrontend.connect({ path });
const [queue] = await frontend.start({});
let counter = Number(from);
setTimeout(() => process.kill(process.pid, 'SIGKILL'), Number(ms));
async function write() {
  for (;;) {
    const place = counter % ${PLACES};
    const data = Buffer.alloc(${BLOCKS * 256}, counter & 0xff);
    const request = makeWrite(Buffer.from(key, 'hex'), counter++, place * ${BLOCKS}, data);
    await queue.submit([request], [512]);
    writeSync(1, 'w');
  }
}
for (let i = 0; i < ${DEPTH}; i++) write();
`;

t.test(`${ROUNDS} front ends killed with ${DEPTH} writes under way`, async (t) => {
  const folder = temporaryFolder();
  const path = join(folder, 'r.sock');
  createState(join(folder, 'state'), { size: 128 << 10, key: KEY }, native);
  const daemon = await Daemon.start(folder, 'vduse', [
    ...['serve', 'state', '--type', 'rpmb', '--socket-path', path],
  ]);
  const expected = new Uint8Array(PLACES * BLOCKS * 256);
  let counter = 0;
  let unanswered = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const killed = spawnSync(
      process.execPath,
      [
        ...['--input-type=module', '--eval', FRONT_END, path],
        ...[Buffer.from(KEY).toString('hex'), String(counter), String(2 * round)],
      ],
      { env: { PATH: process.env['PATH'] }, timeout: 30_000, encoding: 'utf8' },
    );
    if (killed.signal !== 'SIGKILL') t.fail(killed.stderr);
    const frontend = await VhostUserFrontend.connect({ path });
    const [queue] = await frontend.start({});
    const client = new RpmbClient({
      name: path,
      limits: parseConfig(await frontend.readConfig(0, 3), path),
      exchange: async (request, frames) => {
        const { written, data } = await queue!.submit([request], [frames * 512]);
        return data[0]!.subarray(0, written);
      },
      getRandom: (into) => native.getRandom(into),
    });
    const now = await client.readCounter(KEY);
    const done = now - counter;
    const answered = killed.stdout.length;
    t.ok(
      done >= answered && done <= answered + 2 * DEPTH,
      `round ${round}: ${answered} answered, ${done} done`,
    );
    for (let at = counter; at < now; at++) {
      const place = (at % PLACES) * BLOCKS * 256;
      expected.fill(at & 0xff, place, place + BLOCKS * 256);
    }
    t.same(await client.readBlocks(0, PLACES * BLOCKS, KEY), expected, 'their data, nothing else');
    unanswered += done - answered;
    counter = now;
    await frontend.close();
  }
  t.comment(`${ROUNDS} killed front ends: ${counter} writes, ${unanswered} of them never answered`);
  t.equal(await daemon.stop(), 0, 'the daemon still stands');
});
