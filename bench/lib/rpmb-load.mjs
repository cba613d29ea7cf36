// Writes to an RPMB, in a process of its own: `rpmb-load.mjs SOCKET`, then a number of ms a line on standard
// input: that long one durable write after the other; how many a second is told on standard output.
import { createInterface } from 'node:readline';
import { connect, drivenWritesPerSecond, WARM_WRITES } from './rpmb.mjs';

/** A store that is slow from the start is not waited for any longer. */
const WARM_MS = 5000;

const device = await connect(process.argv[2]);
await drivenWritesPerSecond(device, WARM_MS, { most: WARM_WRITES });
for await (const line of createInterface({ input: process.stdin })) {
  const ms = Number(line);
  // Of the three steps of a write each takes 5 ms.
  console.log(await drivenWritesPerSecond(device, ms, { most: Math.ceil(ms / 5) }));
}
await device.close();
