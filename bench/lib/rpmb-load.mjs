// Writes to an RPMB, in a process of its own: `rpmb-load.mjs SOCKET`, then a number of ms a line on standard
// input: that long one durable write after the other; how many a second is told on standard output.
import { createInterface } from 'node:readline';
import { connect, writesPerSecond } from './rpmb.mjs';

const device = await connect(process.argv[2]);
for await (const line of createInterface({ input: process.stdin })) {
  console.log(await writesPerSecond(device, Number(line)));
}
await device.close();
