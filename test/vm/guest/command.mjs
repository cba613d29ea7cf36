// What the tests of the command line share: commands run to their end, and real udev.
import { spawn } from 'node:child_process';
import { copyFileSync, existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { equal, loadModules, ROOT, sh, until, VDUSE } from './harness.mjs';

/** The unprivileged user that serves, a member of the group vduse. */
export const MEMBER = 'vduse-test';
export const AS_MEMBER = [
  'setpriv',
  `--reuid=${MEMBER}`,
  `--regid=${MEMBER}`,
  '--groups=vduse',
  '--inh-caps=-all',
];
/** The same with the one capability that attaching needs. */
export const AS_ATTACHING_MEMBER = [
  ...AS_MEMBER.slice(0, -1),
  '--inh-caps=+net_admin',
  '--ambient-caps=+net_admin',
];

/** No state directory can be found without these. */
export const NO_STATE_DIRECTORY = {
  VDUSE_STATE_DIR: undefined,
  RUNTIME_DIRECTORY: undefined,
  XDG_RUNTIME_DIR: undefined,
};

/** Run a program to its end. */
export function runProgram(command, { env = {}, timeout = 180 } = {}) {
  return new Promise((resolve) => {
    const child = spawn(command[0], command.slice(1), {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...env },
      timeout: timeout * 1000,
      killSignal: 'SIGKILL',
    });
    const result = { stdout: '', stderr: '' };
    child.stdout.on('data', (data) => (result.stdout += data));
    child.stderr.on('data', (data) => (result.stderr += data));
    child.on('close', (code, signal) => resolve({ ...result, status: code ?? signal }));
  });
}

/** Run `vduse ARGS` to its end. */
export function vduse(args, { as = [], ...options } = {}) {
  return runProgram([...as, process.execPath, VDUSE, ...args], options);
}

/** Run tasks, three at a time: each is mostly a Node that starts, and there are two CPUs. */
export async function together(tasks) {
  const waiting = [...tasks];
  const work = async () => {
    for (let task = waiting.shift(); task !== undefined; task = waiting.shift()) await task();
  };
  await Promise.all([work(), work(), work()]);
}

/** The one line that every error is, with what to do in parentheses at its end. */
export const ONE_LINE = /^vduse: [^\n]+ \([^\n]+\)\n$/;

/** A test point: the command fails with that status and one line that has `words`. */
export async function fails(args, status, words, options) {
  const done = await vduse(args, options);
  checkFailure(`vduse ${args.join(' ')}`, done, status, words);
  return done;
}

/** A test point: what a command left fits a failure of that status. */
export function checkFailure(name, done, status, words) {
  const found = {
    status: done.status,
    stdout: done.stdout,
    line: ONE_LINE.test(done.stderr),
    words: [words].flat().every((word) => done.stderr.includes(word)),
  };
  const fits = { status, stdout: '', line: true, words: true };
  equal(found, fits, `${name}: ${done.stderr.trim() || 'nothing on stderr'}`);
}

/** The kernel's VDUSE devices, as anybody sees them; none without the module. */
export const deviceNodes = () => (existsSync('/dev/vduse') ? readdirSync('/dev/vduse').sort() : []);

/** Ids of processes that run our program. */
export function ourProcesses() {
  return readdirSync('/proc').filter((pid) => {
    if (!/^\d+$/.test(pid)) return false;
    try {
      return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(VDUSE);
    } catch {
      return false;
    }
  });
}

const UDEVD = ['/usr/lib/systemd/systemd-udevd', '/lib/systemd/systemd-udevd'];

/** Group, user, rule and a running udevd, as docs/containers.md tells an administrator. */
export async function startUdev() {
  if (!existsSync('/run/udev/control')) {
    sh(`groupadd --system vduse; useradd --system --no-create-home --user-group ${MEMBER}`);
    copyFileSync(`${ROOT}share/60-vduse.rules`, '/etc/udev/rules.d/60-vduse.rules');
    sh(`${UDEVD.find((path) => existsSync(path))} --daemon`);
  }
  loadModules();
  sh('udevadm trigger --subsystem-match=vduse --settle');
  return until(() => (statSync('/dev/vduse/control').mode & 0o777) === 0o660);
}
