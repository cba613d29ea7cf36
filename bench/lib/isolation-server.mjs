// A disk and an RPMB on a slow store in one process, each on an engine as the daemon gives it: `isolation-server.mjs IMAGE STATE
// DISK_SOCKET RPMB_SOCKET`, until it is killed.
import { openDisk } from '../../dist/daemon/disk.js';
import { openRpmb } from '../../dist/daemon/rpmb.js';
import { prepareVhostUser } from '../../dist/daemon/serve-vhost-user.js';
import { native } from '../../dist/native/index.js';
import { ReactorPool } from '../../dist/reactor/index.js';

const [, , image, state, diskSocket, rpmbSocket] = process.argv;
const fail = (error) => {
  throw error;
};
const startEngine = () =>
  ReactorPool.start(
    native,
    new URL('./isolation-worker.mjs', import.meta.url),
    { threads: 1, pollUs: 100, engine: 'auto', policy: 'auto', rehearse: false },
    fail,
  );
const common = await startEngine();
const events = { log: (text) => console.error(text), ended: fail };
const devices = [
  ['disk', diskSocket, openDisk({ image }, true)],
  ['rpmb', rpmbSocket, openRpmb({ image: state })],
];
for (const [name, path, device] of devices) {
  await prepareVhostUser(name, { socket: { path } }, () => device).start(
    device.ownThread ? await startEngine() : common,
    events,
  );
}
