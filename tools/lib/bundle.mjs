#!/usr/bin/env node
// Makes an OCI bundle whose container has one block device and no capability:
//   bundle.mjs DIRECTORY DEVICE [--mount SOURCE:TARGET] COMMAND [ARGUMENT]...
// The root file system is a static busybox; DEVICE appears inside as /dev/disk, and with --mount the
// host's folder SOURCE as TARGET.
import { execFileSync } from 'node:child_process';
import { chmodSync, copyFileSync, mkdirSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const [directory, device, ...args] = process.argv.slice(2);
const mount = args[0] === '--mount' ? args.splice(0, 2)[1] : undefined;
if (args.length === 0) {
  console.error('usage: bundle.mjs DIRECTORY DEVICE [--mount SOURCE:TARGET] COMMAND [ARGUMENT]...');
  process.exit(64);
}

const root = join(directory, 'rootfs');
for (const folder of ['bin', 'dev', 'proc', 'tmp', 'mnt']) {
  mkdirSync(join(root, folder), { recursive: true });
}
const busybox = execFileSync('sh', ['-c', 'command -v busybox'], { encoding: 'utf8' }).trim();
copyFileSync(busybox, join(root, 'bin', 'busybox'));
chmodSync(join(root, 'bin', 'busybox'), 0o755);
for (const applet of ['sh', 'dd', 'cat', 'echo', 'cmp', 'ls', 'grep', 'tr', 'head', 'od']) {
  execFileSync('ln', ['-sf', 'busybox', join(root, 'bin', applet)]);
}

// dev_t as the kernel's user-space ABI lays it out.
const { rdev } = statSync(device);
const major = (rdev >> 8) & 0xfff;
const minor = (rdev & 0xff) | ((rdev >> 12) & 0xfff00);

const binds = [];
if (mount !== undefined) {
  const [source, destination] = mount.split(':');
  binds.push({ destination, type: 'bind', source, options: ['bind', 'rw'] });
}

const config = {
  ociVersion: '1.0.2',
  process: {
    user: { uid: 0, gid: 0 },
    args,
    env: ['PATH=/bin'],
    cwd: '/',
    noNewPrivileges: true,
    capabilities: { bounding: [], effective: [], inheritable: [], permitted: [], ambient: [] },
  },
  root: { path: 'rootfs', readonly: false },
  mounts: [
    { destination: '/proc', type: 'proc', source: 'proc' },
    { destination: '/dev', type: 'tmpfs', source: 'tmpfs', options: ['nosuid', 'mode=755'] },
    ...binds,
  ],
  linux: {
    namespaces: ['pid', 'ipc', 'uts', 'mount', 'network'].map((type) => ({ type })),
    devices: [{ path: '/dev/disk', type: 'b', major, minor, fileMode: 0o600, uid: 0, gid: 0 }],
    // The node alone gives EPERM: the device cgroup must allow it too.
    resources: {
      devices: [
        { allow: false, access: 'rwm' },
        { allow: true, type: 'b', major, minor, access: 'rw' },
      ],
    },
  },
};
writeFileSync(join(directory, 'config.json'), `${JSON.stringify(config, null, 2)}\n`);
