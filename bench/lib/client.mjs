// The load, in a process of its own: `client.mjs SOCKET BACKEND_PID [packed]`, then one JSON object a line
// on standard input, each a run, and one line of results for each on standard output. Processor time
// is read right before and behind a run.
import { createInterface } from 'node:readline';
import { runBlockLoad, VhostUserFrontend } from '../../dist/frontend/index.js';
import { cpuSeconds } from './process.mjs';

const QUEUE_SIZE = 256;
const BLOCK_SIZE = 1n << 6n;
const FLUSH = 1n << 9n;

const [, , path, pid, ring] = process.argv;
const frontend = await VhostUserFrontend.connect({ path });
const [queue] = await frontend.start({
  queueSize: QUEUE_SIZE,
  packed: ring === 'packed',
  features: BLOCK_SIZE | FLUSH,
});

let seed = 1;
for await (const line of createInterface({ input: process.stdin })) {
  const { warm, ...options } = JSON.parse(line);
  // Both ends compile what this load makes hot before it counts.
  if (warm > 0) runBlockLoad(queue, { ...options, seed: seed++, seconds: warm });
  const before = cpuSeconds(pid);
  const result = runBlockLoad(queue, { ...options, seed: seed++ });
  const cpu = cpuSeconds(pid) - before;
  if (result.errors > 0) throw new Error(`${result.errors} requests failed`);
  const { requests, seconds, kicks, sleeps, latency } = result;
  console.log(
    JSON.stringify({
      requests,
      seconds,
      iops: requests / seconds,
      p50: latency.quantile(0.5),
      p99: latency.quantile(0.99),
      cpuUs: (cpu * 1e6) / requests,
      kicks: kicks / requests,
      sleeps: sleeps / requests,
    }),
  );
}
await frontend.close();
