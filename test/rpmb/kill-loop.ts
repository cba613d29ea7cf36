import { join } from 'node:path';
import type { Test } from 'tap';
import { VhostUserFrontend } from '../../lib/frontend/index.ts';
import { native } from '../../lib/native/index.ts';
import { makeWrite, RpmbClient } from '../../lib/rpmb/client.ts';
import { parseConfig } from '../../lib/rpmb/config.ts';
import { ResponseType } from '../../lib/rpmb/frame.ts';
import { checkReply } from '../../lib/rpmb/reply.ts';
import { createState } from '../../lib/rpmb/state/create.ts';
import { seeded } from './disk.ts';
import { KEY, SMALL, SMALL_BLOCKS, temporaryFolder } from './harness.ts';
import { Daemon } from './programs.ts';

/** The largest write, in blocks. */
const MAX_BLOCKS = 8;
/** The daemon lives so many milliseconds at most once it is written to. */
const LIFE_MS = 40;

/** What a write with the counter `counter` puts where. */
function writeOf(counter: number): { address: number; data: Uint8Array } {
  const random = seeded(counter);
  const blocks = 1 + Math.floor(random() * MAX_BLOCKS);
  const address = Math.floor(random() * (SMALL_BLOCKS - blocks + 1));
  const data = new Uint8Array(blocks * 256).map(() => random() * 256);
  return { address, data };
}

/**
 * The real daemon, killed `rounds` times while a client writes to it over its socket. Each time it
 * serves again, key, counter and every byte must be as after the last write that was acknowledged,
 * or after the one on its way.
 */
export async function killLoop(t: Test, rounds: number): Promise<void> {
  const folder = temporaryFolder();
  const path = join(folder, 'r.sock');
  createState(join(folder, 'state'), { size: SMALL, maxWriteBlocks: MAX_BLOCKS }, native);
  const image = new Uint8Array(SMALL);
  const apply = (counter: number) => {
    const { address, data } = writeOf(counter);
    image.set(data, address * 256);
  };
  let acknowledged = 0;
  let unanswered = 0;
  let failures = 0;
  for (let round = 0; round <= rounds; round++) {
    const daemon = await Daemon.start(folder, 'vduse', [
      ...['serve', 'state', '--type', 'rpmb', '--socket-path', path],
    ]);
    const { frontend, client, exchange } = await connect(path);
    if (round === 0) await client.programKey(KEY);

    // The counter's MAC proves the key.
    const counter = await client.readCounter(KEY);
    if (counter === acknowledged + 1 && round > 0) {
      apply(acknowledged++);
      unanswered++;
    }
    const data = await client.readBlocks(0, SMALL_BLOCKS, KEY);
    if (counter !== acknowledged || Buffer.compare(data, image) !== 0) {
      failures++;
      t.fail(`round ${round}: counter ${counter}, acknowledged ${acknowledged}`);
      break;
    }
    if (round === rounds) {
      await frontend.close();
      await daemon.stop();
      break;
    }

    const life = setTimeout(() => daemon.signal('SIGKILL'), Math.random() * LIFE_MS);
    for (;;) {
      const { address, data } = writeOf(acknowledged);
      const request = makeWrite(KEY, acknowledged, address, data);
      const reply = await exchange(request, 1).catch(() => undefined);
      if (reply === undefined) break;
      const fault = checkReply(reply, {
        ...{ type: ResponseType.DataWrite, key: KEY, address, counter: acknowledged + 1 },
      });
      if (fault !== undefined) throw new Error(`write ${acknowledged}: ${fault.check}`);
      apply(acknowledged++);
    }
    clearTimeout(life);
    await daemon.kill();
    await frontend.close();
  }
  t.comment(
    `kill -9: ${rounds} rounds, ${acknowledged} writes, ${unanswered} of them never answered, failures ${failures}`,
  );
  t.equal(failures, 0);
  t.ok(acknowledged > rounds, 'there was something to lose');
}

async function connect(path: string) {
  const frontend = await VhostUserFrontend.connect({ path });
  const [queue] = await frontend.start({});
  const exchange = async (request: Uint8Array, frames: number) => {
    const { written, data } = await queue!.submit([request], [frames * 512]);
    return data[0]!.subarray(0, written);
  };
  const client = new RpmbClient({
    name: path,
    limits: parseConfig(await frontend.readConfig(0, 3), path),
    exchange,
    getRandom: (into) => native.getRandom(into),
  });
  return { frontend, client, exchange };
}
