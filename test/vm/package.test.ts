/** The tarball, as somebody gets it who has no compiler. */
import { execFileSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));

/** Twenty lines of somebody else's program: a file becomes a disk, is written and read. */
const PROGRAM = `
import { readFileSync, writeFileSync } from 'node:fs';
import { serve } from 'vduse';

const server = await serve(
  { image: '/dev/shm/api.img', size: 16 << 20, name: 'api', attach: true, stateDir: '/dev/shm/state' },
  { log: (text) => console.error(text) },
);
const [disk] = server.devices;
console.log('node', disk.node);
writeFileSync(disk.node, 'through the public interface', { flag: 'r+' });
const [{ requests }] = disk.counters();
console.log('requests', requests > 0);
const outcomes = await server.stop();
console.log('outcome', outcomes[0].device);
console.log('image', readFileSync('/dev/shm/api.img').toString('latin1', 0, 28));
`;

t.setTimeout(300_000);

t.test('npm pack, installed without a compiler, run on a stock kernel', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'vduse-package-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  execFileSync('npm', ['pack', '--silent', '--pack-destination', folder], { cwd: ROOT });
  const tarball = readdirSync(folder).find((name) => name.endsWith('.tgz'));
  t.ok(tarball, 'a tarball');

  const bin = join(folder, 'bin');
  mkdirSync(bin);
  for (const program of ['node', 'npm', 'npx', 'sh']) {
    const path = execFileSync('sh', ['-c', `command -v ${program}`], { encoding: 'utf8' }).trim();
    symlinkSync(path, join(bin, program));
  }
  const env = { ...process.env, PATH: bin };
  const app = join(folder, 'app');
  mkdirSync(app);
  writeFileSync(join(app, 'package.json'), '{ "type": "module" }');
  const install = ['install', '--silent', '--no-audit', '--no-fund', `../${tarball}`];
  execFileSync('npm', install, { cwd: app, env });
  const doctor = execFileSync('npx', ['vduse', 'doctor'], { cwd: app, env, encoding: 'utf8' });
  t.match(doctor, /^ok +kernel: /m, 'npx vduse doctor');
  t.notOk(existsSync(join(app, 'node_modules/vduse/build')), 'nothing was built');

  writeFileSync(join(app, 'program.mjs'), PROGRAM);
  const lines = execFileSync(
    join(ROOT, 'tools/vm'),
    ['--', 'sh', '-c', `modprobe -a vduse virtio_vdpa virtio_blk && cd ${app} && node program.mjs`],
    { encoding: 'utf8', cwd: dirname(ROOT) },
  );
  t.equal(
    lines,
    'node /dev/vda\nrequests true\noutcome gone\nimage through the public interface\n',
    'the program',
  );
});
