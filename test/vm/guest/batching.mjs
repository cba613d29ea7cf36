// One interrupt answers several requests: counted by the daemon itself and, once, by strace.
import { spawn } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';
import {
  check,
  equal,
  loadModules,
  note,
  run,
  SCRATCH,
  Server,
  succeeds,
  until,
} from './harness.mjs';

const FOLDER = `${SCRATCH}/batching`;
/** VDUSE_VQ_INJECT_IRQ of linux/vduse.h. */
const INJECT = '0x40048117';

/** Run fio; returns what the counters rose by. */
async function load(server, requests, name) {
  const [before] = await server.counters();
  succeeds(
    `fio --name=batching --filename=/dev/vda --ioengine=libaio --direct=1 --rw=randread --bs=4k --iodepth=32 --number_ios=${requests} --size=60m --output=/dev/null`,
    name,
    { timeout: 300 },
  );
  const [after] = await server.counters();
  return {
    requests: after.requests - before.requests,
    interrupts: after.interrupts - before.interrupts,
  };
}

await run(async () => {
  loadModules();
  mkdirSync(FOLDER);
  const server = await Server.start([
    `${FOLDER}/b.img`,
    ...['--name', 'batching', '--size', '64M', '--attach', '--state-dir', `${FOLDER}/state`],
  ]);
  const counted = await load(server, 15000, 'fio: random reads of 4k, depth 32');
  const ratio = counted.interrupts / counted.requests;
  note(
    `${counted.requests} requests, ${counted.interrupts} interrupts: ${ratio.toFixed(3)} a request`,
  );
  check(counted.requests >= 15000, 'every request is counted');
  check(ratio < 0.5, 'fewer than one interrupt for two requests', `${ratio}`);

  const log = `${FOLDER}/strace`;
  const strace = spawn(
    'strace',
    ['-f', '-X', 'raw', '-e', 'trace=ioctl', '-o', log, '-p', `${server.pid}`],
    { stdio: ['ignore', 'ignore', 'pipe'] },
  );
  let told = '';
  strace.stderr.on('data', (data) => (told += data));
  await until(() => told.includes('attached'), 60);
  const traced = await load(server, 2000, 'the same under strace');
  strace.kill('SIGINT');
  await new Promise((resolve) => strace.once('exit', resolve));
  const calls = readFileSync(log, 'utf8')
    .split('\n')
    .filter((line) => line.includes(INJECT));
  note(`under strace: ${traced.requests} requests, ${calls.length} calls of VQ_INJECT_IRQ`);
  equal(calls.length, traced.interrupts, 'strace counts as many calls as the daemon');
  check(calls.length < traced.requests / 2, 'fewer than one call for two requests there too');
  equal(await server.stop(), 0, 'the server ends');
});
