import { accessSync, constants, existsSync, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { delimiter, join } from 'node:path';
import { native } from '../native/index.ts';
import { CONTROL } from '../transport/vduse/index.ts';
import { CAP_NET_ADMIN, hasCapability } from './capabilities.ts';
import { findStateDirectory } from './state-directory.ts';

/** One thing that serving needs, and what was found. */
export interface Check {
  readonly name: string;
  readonly ok: boolean;
  readonly found: string;
  /** What to do about it, where it is not ok. */
  readonly remedy?: string;
}

/** Examine this host: each lack comes with its remedy. */
export async function examine(): Promise<Check[]> {
  return [
    { name: 'kernel', ok: true, found: release() },
    module('vduse', 'VDUSE itself', existsSync(CONTROL)),
    module('virtio_vdpa', 'disks for this host and its containers'),
    module('virtio_blk', 'disks for this host and its containers'),
    module('vhost_vdpa', 'disks for virtual machines'),
    controlNode(),
    vdpaTool(),
    netAdmin(),
    ioUring(),
    stateDirectory(),
  ];
}

function module(name: string, use: string, works?: boolean): Check {
  if (works === true || existsSync(`/sys/module/${name}`) || isBuiltIn(name)) {
    return { name: `module ${name}`, ok: true, found: `there (${use})` };
  }
  return {
    name: `module ${name}`,
    ok: false,
    found: `not loaded (${use})`,
    remedy: isKnown(name)
      ? `modprobe ${name}`
      : `this kernel has none: install one with CONFIG_${name === 'vduse' ? 'VDPA_USER' : name.toUpperCase()}, such as Debian's 6.12`,
  };
}

function controlNode(): Check {
  const name = 'control node';
  if (!existsSync(CONTROL)) {
    return { name, ok: false, found: `no ${CONTROL}`, remedy: 'modprobe vduse' };
  }
  try {
    accessSync(CONTROL, constants.R_OK | constants.W_OK);
    return { name, ok: true, found: `${CONTROL} can be opened` };
  } catch {
    return {
      name,
      ok: false,
      found: `${CONTROL}: permission denied`,
      remedy:
        'install share/60-vduse.rules in /etc/udev/rules.d and join the group vduse, or be root',
    };
  }
}

function vdpaTool(): Check {
  const name = 'vdpa tool';
  const path = (process.env['PATH'] ?? '')
    .split(delimiter)
    .concat('/usr/sbin', '/sbin')
    .map((directory) => join(directory, 'vdpa'))
    .find((file) => existsSync(file));
  return path === undefined
    ? {
        name,
        ok: false,
        found: 'not found',
        remedy: 'apt-get install iproute2, or use vduse attach',
      }
    : { name, ok: true, found: path };
}

function netAdmin(): Check {
  const name = 'attaching';
  return hasCapability(CAP_NET_ADMIN)
    ? { name, ok: true, found: 'allowed (CAP_NET_ADMIN)' }
    : {
        name,
        ok: false,
        found: 'not allowed (no CAP_NET_ADMIN)',
        remedy: 'let root run vdpa dev add; the server itself needs no privilege',
      };
}

function ioUring(): Check {
  const name = 'io_uring';
  try {
    native.ioUringSetup(2, 0).ring.close();
    return { name, ok: true, found: 'allowed' };
  } catch (error) {
    const disabled = readFirst('/proc/sys/kernel/io_uring_disabled');
    return {
      name,
      ok: false,
      found: `refused: ${(error as Error).message}; a pool of threads is used instead`,
      remedy:
        disabled !== undefined && disabled !== '0'
          ? 'sysctl kernel.io_uring_disabled=0'
          : 'allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp policy',
    };
  }
}

function stateDirectory(): Check {
  const name = 'state directory';
  try {
    const directory = findStateDirectory(undefined);
    if (directory !== undefined) return { name, ok: true, found: directory.path };
  } catch (error) {
    return { name, ok: false, found: (error as Error).message };
  }
  return {
    name,
    ok: false,
    found: 'none that this user can write to',
    remedy: 'give one with --state-dir or $VDUSE_STATE_DIR, or serve without restart',
  };
}

const modules = () => `/lib/modules/${release()}`;

function isBuiltIn(name: string): boolean {
  return listsModule('modules.builtin', name);
}

function isKnown(name: string): boolean {
  return listsModule('modules.dep', name);
}

/** Module files are named with - or _ alike. */
function listsModule(list: string, name: string): boolean {
  const text = readFirst(join(modules(), list)) ?? '';
  return new RegExp(`/${name.replaceAll('_', '[-_]')}\\.ko`, 'm').test(text);
}

function readFirst(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return undefined;
  }
}
