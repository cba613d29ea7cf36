/** A real guest: QEMU's generic vhost-user device in a stock kernel's machine, driven over PCI. */
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { temporaryFolder } from '../rpmb/harness.ts';
import { Daemon, mustRun } from '../rpmb/programs.ts';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const SECONDS = 300;

t.setTimeout(SECONDS * 1000 + 60_000);

t.test('an RPMB in a virtual machine', async (t) => {
  const folder = temporaryFolder();
  const socket = join(folder, 'r.sock');
  mustRun(folder, 'vduse', ['rpmb', 'create', 'state', '--size', '1M']);
  const daemon = await Daemon.start(folder, 'vhost-user-rpmb', [
    ...['--socket-path', socket, '--flash-path', 'state'],
  ]);
  await t.spawn(
    'tools/vm',
    [
      ...['--timeout', String(SECONDS), '--rpmb', socket],
      ...['--', 'python3', 'test/vm/guest/rpmb.py'],
    ],
    { cwd: ROOT, timeout: SECONDS * 1000 + 30_000 },
    'a driver in the guest',
  );
  t.equal(await daemon.stop(), 0);
  const state = JSON.parse(mustRun(folder, 'vduse', ['rpmb', 'inspect', 'state', '--json']));
  t.match(state, { keyProgrammed: true, writeCounter: 1, interrupted: false });
});
