// The contestants over vhost-user: how each is started, on which CPU.
import { spawn } from 'node:child_process';
import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { ROOT, run, VDUSE } from './machine.mjs';

/**
 * Command lines by name. `direct` past the page cache. The reference runs in what was measured as
 * its best configuration: io_uring, an I/O thread of its own (which polls adaptively, as ours).
 */
export const CONTESTANTS = {
  ours: ({ image, socket, direct, program = VDUSE }) => [
    process.execPath,
    program,
    'serve',
    image,
    '--socket-path',
    socket,
    '--json',
    ...(direct ? ['--direct'] : []),
  ],
  reference: ({ image, socket, direct }) => [
    'qemu-storage-daemon',
    '--object',
    'iothread,id=io',
    '--blockdev',
    `driver=file,node-name=f,filename=${image},aio=io_uring,cache.direct=${direct ? 'on' : 'off'}`,
    '--export',
    `vhost-user-blk,id=e,node-name=f,writable=on,iothread=io,addr.type=unix,addr.path=${socket}`,
  ],
  floor: ({ image, socket, direct, floor }) => [
    floor,
    ...(direct ? ['--direct'] : []),
    image,
    socket,
  ],
};

/** Compile the design in C; returns the program's path in `folder`. */
export function buildFloor(folder) {
  const floor = join(folder, 'floor');
  const sources = ['floor.c', 'cached.c', 'direct.c'].map((name) =>
    join(ROOT, 'bench/floor', name),
  );
  run('cc', ['-O2', '-o', floor, ...sources, '-lpthread']);
  return floor;
}

/** Put before a command: pinned to a CPU, and, where asked for, before all other work there. */
export function pinned(cpu, first) {
  return [...(first ? ['chrt', '-r', '1'] : []), 'taskset', '-c', String(cpu)];
}

/** A running back end. */
export class Backend {
  /** `onLine` gets what it prints on standard output. */
  static async start(command, socket, onLine) {
    rmSync(socket, { force: true });
    const child = spawn(command[0], command.slice(1), {
      stdio: ['ignore', onLine === undefined ? 'ignore' : 'pipe', 'inherit'],
    });
    if (onLine !== undefined) createInterface({ input: child.stdout }).on('line', onLine);
    const backend = new Backend(child, socket);
    const end = Date.now() + 30_000;
    while (!existsSync(socket)) {
      if (child.exitCode !== null || Date.now() > end) {
        child.kill('SIGKILL');
        throw new Error(`no socket from: ${command.join(' ')}`);
      }
      await delay(10);
    }
    return backend;
  }

  constructor(child, socket) {
    this.child = child;
    this.pid = child.pid;
    this.socket = socket;
    this.ended = new Promise((resolve) => child.once('exit', resolve));
  }

  async stop() {
    this.child.kill('SIGTERM');
    const late = delay(10_000, 'late', { ref: false });
    if ((await Promise.race([this.ended, late])) === 'late') this.child.kill('SIGKILL');
    await this.ended;
    rmSync(this.socket, { force: true });
  }
}
