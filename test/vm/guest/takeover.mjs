// A device attached by others outlives its daemon: drained on SIGTERM, it waits for the next one, and
// what the host asks of the disk meanwhile waits too.
//   takeover.mjs [split|packed]
import { spawn } from 'node:child_process';
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import {
  AS_MEMBER,
  checkFailure,
  deviceNodes,
  fails,
  MEMBER,
  NO_STATE_DIRECTORY,
  startUdev,
  vduse,
} from './command.mjs';
import {
  check,
  delay,
  equal,
  note,
  read,
  run,
  SCRATCH,
  Server,
  sh,
  succeeds,
  until,
} from './harness.mjs';

const FOLDER = `${SCRATCH}/takeover`;
const STATES = `${FOLDER}/state`;
const RECORD = `${STATES}/keep.json`;
const MNT = `${FOLDER}/mnt`;
const IMAGE = `${FOLDER}/d.img`;

const [ring = 'split'] = process.argv.slice(2);

const serve = (...more) => [
  IMAGE,
  ...['--name', 'keep', '--size', '64M', '--queues', '2', '--state-dir', STATES, '--ring', ring],
  ...more,
];
const member = { as: AS_MEMBER };

/** A command in the background. */
function begin(line) {
  const child = spawn('sh', ['-c', line], { stdio: ['ignore', 'ignore', 'inherit'] });
  const job = { status: undefined };
  job.ended = new Promise((resolve) => {
    child.on('exit', (code, signal) => resolve((job.status = code ?? signal)));
  });
  return job;
}

/** How long a job may still take. */
const endOf = (job, seconds = 120) => Promise.race([job.ended, delay(seconds * 1000)]);

await run(async () => {
  await startUdev();
  sh(`modprobe ext4; rm -rf ${FOLDER} && mkdir -p ${MNT} && chown ${MEMBER} ${FOLDER}`);
  await underLoad();
  await withoutStateDirectory();
  equal(deviceNodes(), ['control'], 'no device is left');
});

async function underLoad() {
  const first = await Server.start(serve(), member);
  equal(first.event('ready').resumed, false, 'the first server begins anew');
  succeeds('vdpa dev add name keep mgmtdev vduse', 'attached by root');
  await until(() => existsSync('/dev/vda'));
  succeeds(`mkfs.ext4 -q /dev/vda && mount /dev/vda ${MNT}`, 'a file system on it');
  sh(
    `head -c 4M /dev/urandom > ${FOLDER}/random && dd if=${FOLDER}/random of=/dev/vda bs=1M seek=60 oflag=direct`,
  );

  const load = begin(
    `fio --name=load --directory=${MNT} --rw=randwrite --bs=4k --size=12m --ioengine=libaio --iodepth=16 --direct=1 --fsync=64 --verify=crc32c --verify_fatal=1 --output=/dev/null`,
  );
  const before = requests(await first.counters());
  check(await until(async () => requests(await first.counters()) > before + 200, 60), 'under load');
  equal(await first.stop(), 0, 'SIGTERM under load: status 0');
  check(first.stderr.includes('keep: still attached'), 'it says that the device is left');
  equal(load.status, undefined, 'the load goes on, and waits');
  equal(deviceNodes(), ['control', 'keep'], 'the device is there');
  equal((statSync(RECORD).mode & 0o777).toString(8), '600', 'the record is private');
  const reading = begin(
    `dd if=/dev/vda of=${FOLDER}/read bs=1M skip=60 count=4 iflag=direct 2>/dev/null`,
  );
  await delay(500);
  equal(reading.status, undefined, 'what is begun now waits too');

  await otherOptions();
  await hostileRecord();

  const second = await Server.start(serve(), member);
  equal(second.event('ready').resumed, true, 'the same options: taken over');
  equal(second.event('ready').node, '/dev/vda', 'with its node');
  check(!existsSync(RECORD), 'the record is used up');
  equal(await endOf(reading), 0, 'what had waited ends');
  equal(await second.stop('SIGINT'), 0, 'SIGINT, taken over: status 0');
  check(second.stderr.includes('keep: still attached'), 'it says that the device is left');
  succeeds(`cmp ${FOLDER}/read ${FOLDER}/random`, 'and read what was there');

  const third = await Server.start(serve(), member);
  equal(await endOf(load), 0, 'fio verifies all it wrote before, between and after');
  const counters = await third.counters();
  note(`counters of the third server: ${JSON.stringify(counters)}`);
  check(
    counters.every(({ errors }) => errors === 0),
    'no request failed',
  );
  check(sh('mount').stdout.includes(MNT), 'the file system is still mounted');
  succeeds(`umount ${MNT} && fsck.ext4 -fn /dev/vda`, 'it is clean');
  equal(await third.stop(), 0, 'SIGTERM, left idle');

  // Nobody answers the detachment: the kernel waits for its limit, then gives the device up.
  writeFileSync('/sys/class/vduse/keep/msg_timeout', '1');
  sh('vdpa dev del keep');
  await fails(['serve', ...serve()], 1, ['gave the device up', 'vduse destroy keep'], member);
  equal((await vduse(['destroy', 'keep'])).status, 0, 'the remedy helps');
  const last = await Server.start(serve(), member);
  equal(last.event('ready').resumed, false, 'the same image can be served again');
  equal(await last.stop(), 0, 'and ends');
}

function requests(counters) {
  return counters.reduce((sum, queue) => sum + queue.requests, 0);
}

/** Refused, with the difference and the remedy; the device and its record stay as they were. */
async function otherOptions() {
  const record = readFileSync(RECORD, 'utf8');
  const remedy = ['serve it as before', 'vdpa dev del keep', 'vduse destroy keep'];
  const cases = [
    ['--queues 1', 'queues 2, now 1'],
    ['--block-size 4096', 'block size 512, now 4096'],
    ['--read-only', 'access read-write, now read-only'],
  ];
  for (const [option, difference] of cases) {
    const args = ['serve', ...serve(...option.split(' '))];
    await fails(args, 1, [difference, ...remedy], member);
  }
  const other = `${FOLDER}/other.img`;
  await fails(['serve', other, ...serve().slice(1)], 1, [`now ${other}`, ...remedy], member);
  check(!existsSync(`${FOLDER}/other.img`), 'the image it made is gone again');
  equal(readFileSync(RECORD, 'utf8'), record, 'the record is as it was');
  equal(deviceNodes(), ['control', 'keep'], 'so is the device');
}

/** A record that is not what this program wrote: refused, never followed. */
async function hostileRecord() {
  sh(`cp -p ${RECORD} ${FOLDER}/elsewhere`);
  sh(`ln -sf ${FOLDER}/elsewhere ${RECORD}`);
  await fails(['serve', ...serve()], 1, [RECORD, 'remove it'], member);
  equal(read(`${FOLDER}/elsewhere`).at(0), '{', 'what the link pointed to stays');
  sh(`rm ${RECORD}; echo '{"version":1' > ${RECORD}; chown ${MEMBER} ${RECORD}`);
  await fails(['serve', ...serve()], 1, [RECORD, 'damaged', 'remove it'], member);
  sh(`cp -p ${FOLDER}/elsewhere ${RECORD}`);
}

async function withoutStateDirectory() {
  const options = { ...member, env: NO_STATE_DIRECTORY };
  const args = [`${FOLDER}/lost.img`, '--name', 'lost', '--size', '16M'];
  const server = await Server.start(args, options);
  check(
    /^vduse: lost: no state directory: [^\n]+ \([^\n]+--state-dir\)$/m.test(server.stderr),
    'without a state directory: a word at the start',
    server.stderr,
  );
  succeeds('vdpa dev add name lost mgmtdev vduse', 'attached by root');
  // What udev reads of a new disk would wait for ever, and with it the detachment below.
  succeeds('udevadm settle', 'udev has looked at the disk');
  equal(await server.stop(), 0, 'SIGTERM: status 0');
  check(
    /cannot be taken over \([^\n]*vdpa dev del lost; vduse destroy lost\)\n$/.test(server.stderr),
    'it says that the device cannot be taken over, and what to do',
    server.stderr,
  );
  const again = await vduse(['serve', ...args], options);
  checkFailure('serving it again', again, 1, ['vdpa dev del lost', 'vduse destroy lost']);
  writeFileSync('/sys/class/vduse/lost/msg_timeout', '1');
  succeeds('vdpa dev del lost', 'vdpa dev del');
  equal((await vduse(['destroy', 'lost'])).status, 0, 'vduse destroy');
}
