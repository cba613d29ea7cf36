// From a command to a disk that opens, beside qemu-storage-daemon on the same machine.
import { spawn } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, openSync } from 'node:fs';
import { check, loadModules, note, run, SCRATCH, Server, sh, until } from './harness.mjs';

const FOLDER = `${SCRATCH}/startup`;
const RUNS = 3;

/** The instant at which /dev/vda opens. */
async function opened() {
  const there = await until(() => {
    try {
      closeSync(openSync('/dev/vda', 'r'));
      return true;
    } catch {
      return false;
    }
  }, 60);
  check(there, '/dev/vda opens');
  return performance.now();
}

const gone = () => until(() => !existsSync('/dev/vda') && !existsSync('/dev/vduse/start'), 60);

async function ours() {
  const start = performance.now();
  const server = Server.spawn([
    `${FOLDER}/d.img`,
    ...['--name', 'start', '--attach', '--state-dir', `${FOLDER}/state`],
  ]);
  const time = (await opened()) - start;
  await server.ready();
  await server.stop();
  await gone();
  return time;
}

async function reference() {
  const start = performance.now();
  const daemon = spawn(
    'qemu-storage-daemon',
    [
      ...['--blockdev', `driver=file,node-name=f,filename=${FOLDER}/d.img,aio=io_uring`],
      ...[
        '--export',
        'vduse-blk,id=e,node-name=f,name=start,writable=on,num-queues=1,queue-size=256',
      ],
    ],
    { stdio: ['ignore', 'ignore', 'inherit'] },
  );
  await until(() => existsSync('/dev/vduse/start'), 60);
  // It is refused until every queue is set up, and that is not to be seen from outside.
  await until(() => sh('vdpa dev add name start mgmtdev vduse').status === 0, 60);
  const time = (await opened()) - start;
  sh('vdpa dev del start');
  daemon.kill('SIGTERM');
  await new Promise((resolve) => daemon.once('exit', resolve));
  await gone();
  return time;
}

async function median(what) {
  const times = [];
  for (let i = 0; i < RUNS; i++) times.push(await what());
  note(`${what.name}: ${times.map((time) => time.toFixed(0)).join(', ')} ms`);
  return times.sort((a, b) => a - b)[Math.floor(RUNS / 2)];
}

await run(async () => {
  loadModules();
  mkdirSync(FOLDER);
  sh(`truncate -s 64M ${FOLDER}/d.img`);
  const us = await median(ours);
  const them = await median(reference);
  note(
    `start to usable disk: vduse ${us.toFixed(0)} ms, qemu-storage-daemon ${them.toFixed(0)} ms`,
  );
});
