// What the programs that run inside the test machine share. They speak TAP on stdout.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { PACKAGE, ROOT } from './package.mjs';

export { delay, ROOT };

/** The command line program. */
export const VDUSE = `${PACKAGE}dist/cli/main.js`;
/** A writable tmpfs. */
export const SCRATCH = '/dev/shm';

let count = 0;
let failed = 0;

/** One test point. */
export function check(ok, name, detail) {
  count++;
  if (!ok) failed++;
  console.log(`${ok ? 'ok' : 'not ok'} ${count} - ${name.replaceAll('#', '\\#')}`);
  if (!ok && detail !== undefined) {
    for (const line of String(detail).split('\n')) console.log(`  # ${line}`);
  }
  return ok;
}

export function equal(found, wanted, name) {
  const same = JSON.stringify(found) === JSON.stringify(wanted);
  return check(same, name, `found ${JSON.stringify(found)}, wanted ${JSON.stringify(wanted)}`);
}

/** A figure worth reading in the log. */
export function note(text) {
  console.log(`# ${text}`);
}

/** Run `main`, then close the TAP stream; a throw is a failed point. */
export async function run(main) {
  console.log('TAP version 14');
  try {
    await main();
  } catch (error) {
    check(false, 'runs to its end', error.stack);
  }
  console.log(`1..${count}`);
  process.exit(failed === 0 ? 0 : 1);
}

/** Run a shell line; returns status, stdout and stderr. */
export function sh(line, { timeout = 120, input } = {}) {
  const done = spawnSync('sh', ['-c', line], {
    encoding: 'utf8',
    timeout: timeout * 1000,
    input,
    maxBuffer: 64 << 20,
  });
  return {
    status: done.status ?? `${done.error?.code ?? done.signal}`,
    stdout: done.stdout ?? '',
    stderr: done.stderr ?? '',
  };
}

/** A test point: the shell line exits 0. */
export function succeeds(line, name, options) {
  const done = sh(line, options);
  check(done.status === 0, name, `status ${done.status}\n${done.stdout}${done.stderr}`);
  return done;
}

export const read = (path) => readFileSync(path, 'utf8').trim();

/** Wait until `condition` holds; false when it did not in time. */
export async function until(condition, seconds = 20) {
  const end = Date.now() + seconds * 1000;
  while (Date.now() < end) {
    if (await condition()) return true;
    await delay(20);
  }
  return false;
}

export function loadModules(...names) {
  const all = names.length === 0 ? ['vduse', 'virtio_vdpa', 'virtio_blk'] : names;
  const done = sh(`modprobe -a ${all.join(' ')}`);
  if (done.status !== 0) throw new Error(`modprobe ${all.join(' ')}: ${done.stderr}`);
}

/** Arguments that make a program run as nobody, without any capability. */
export const AS_NOBODY = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups'];

/** A running `vduse serve --json`. */
export class Server {
  constructor(child) {
    this.child = child;
    this.pid = child.pid;
    this.lines = [];
    this.stderr = '';
    this.exited = new Promise((resolve) => {
      child.once('exit', (code, signal) => {
        this.status = code ?? signal;
        resolve(this.status);
      });
    });
    createInterface({ input: child.stdout }).on('line', (line) => {
      try {
        this.lines.push(JSON.parse(line));
      } catch {
        this.lines.push({ event: 'not JSON', line });
      }
    });
    child.stderr.on('data', (data) => {
      this.stderr += data;
      process.stdout.write(String(data).replaceAll(/^(?=.)/gm, '# server: '));
    });
  }

  /** Begin `vduse serve ARGS --json`; `as` is put before the program. */
  static spawn(args, { as = [], env = {} } = {}) {
    const command = [...as, process.execPath, VDUSE, 'serve', ...args, '--json'];
    return new Server(
      spawn(command[0], command.slice(1), {
        stdio: ['ignore', 'pipe', 'pipe'],
        env: { ...process.env, ...env },
      }),
    );
  }

  /** Begin, and wait for the ready line. */
  static async start(args, options) {
    const server = Server.spawn(args, options);
    if (!(await server.ready())) throw new Error(`serve ${args.join(' ')}: not ready`);
    return server;
  }

  async ready(seconds = 120) {
    await until(() => this.event('ready') !== undefined || this.status !== undefined, seconds);
    return this.event('ready') !== undefined;
  }

  event(name) {
    return this.lines.findLast((line) => line.event === name);
  }

  /** The counters it prints on SIGUSR1. */
  async counters() {
    const had = this.lines.length;
    this.child.kill('SIGUSR1');
    await until(() => this.lines.length > had);
    return this.event('counters').queues;
  }

  /** Send a signal, wait for the end; the exit status. */
  async stop(signal = 'SIGTERM', seconds = 60) {
    this.child.kill(signal);
    await Promise.race([this.exited, delay(seconds * 1000)]);
    return this.status;
  }
}

/** Give the nodes to nobody as they appear, as the udev rule would. */
export async function openNodes(name) {
  sh('chown 65534:65534 /dev/vduse/control');
  if (name === undefined) return;
  await until(() => existsSync(`/dev/vduse/${name}`), 90);
  sh(`chown 65534:65534 /dev/vduse/${name}`);
}

/** A served disk as nobody, nodes opened by hand. */
export async function serveAsNobody(name, args, options = {}) {
  await openNodes();
  const server = Server.spawn(args, { as: AS_NOBODY, ...options });
  await openNodes(name);
  if (!(await server.ready())) throw new Error(`serve ${args.join(' ')}: not ready`);
  return server;
}
