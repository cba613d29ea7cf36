// What the kernel knows of a process.
import { readdirSync, readFileSync } from 'node:fs';

/** The kernel counts processor time in ticks of 1/100 s for everybody who asks through /proc. */
const TICKS = 100;

/** Seconds of processor time of all threads of a process, ended ones included. */
export function cpuSeconds(pid) {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  // The name, in parentheses, may hold anything; fields are counted from behind it.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS;
}

/** Times that threads went to sleep by themselves, all threads that live. */
export function voluntarySwitches(pid) {
  let sum = 0;
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    sum += field(`/proc/${pid}/task/${thread}/status`, 'voluntary_ctxt_switches');
  }
  return sum;
}

/** Anonymous memory in use, in KiB. */
export function anonymousKiB(pid) {
  return field(`/proc/${pid}/status`, 'RssAnon');
}

export function threads(pid) {
  return readdirSync(`/proc/${pid}/task`).length;
}

function field(path, name) {
  const match = new RegExp(`^${name}:\\s*(\\d+)`, 'm').exec(readFileSync(path, 'utf8'));
  return Number(match[1]);
}
