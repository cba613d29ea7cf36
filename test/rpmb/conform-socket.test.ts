/** Every clause is shown of what a user starts: the daemon, asked by the tool, over the socket. */
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { type ConformReport, conformClauses } from '../../lib/rpmb/conform/index.ts';
import { temporaryFolder } from './harness.ts';
import { Daemon, mustRun, runProgram } from './programs.ts';

t.setTimeout(120_000);

const folder = temporaryFolder();
writeFileSync(join(folder, 'key'), randomBytes(32), { mode: 0o600 });

const serve = (state: string) =>
  Daemon.start(folder, 'vduse', ['serve', state, '--type', 'rpmb', '--socket-path', 'r.sock']);

function conform(t: Test, what: string): ConformReport {
  const args = ['rpmb', 'conform', 'unix:r.sock', '--key-file', 'key', '--destructive', '--json'];
  const { status, stdout, stderr } = runProgram(folder, 'vduse', args);
  t.equal(status, 0, `${what}: status 0`);
  t.equal(stderr, '', `${what}: nothing on stderr`);
  const report = JSON.parse(stdout) as ConformReport;
  const broken = report.clauses.filter(({ outcome }) => outcome === 'broken');
  t.same(broken, [], `${what}: none is broken`);
  return report;
}

t.test('a fresh state, the end of the counter, after kill -9: every clause is shown', async (t) => {
  mustRun(folder, 'vduse', ['rpmb', 'create', 'fresh', '--size', '1M']);
  mustRun(folder, 'vduse', [
    ...['rpmb', 'create', 'ending', '--size', '128K', '--initial-counter', '4294967294'],
  ]);
  const first = await serve('fresh');
  const reports = [conform(t, 'fresh')];
  await first.kill();

  const second = await serve('fresh');
  reports.push(conform(t, 'after kill -9'));
  t.equal(await second.stop(), 0, 'stopped');

  const third = await serve('ending');
  reports.push(conform(t, 'at the end of the counter'));
  t.equal(await third.stop(), 0, 'stopped');

  const shown = new Set<string>();
  for (const { clauses } of reports) {
    for (const { id, outcome } of clauses) if (outcome === 'holds') shown.add(id);
  }
  const all = conformClauses().map(({ id }) => id);
  t.same(
    all.filter((id) => !shown.has(id)),
    [],
    `all ${all.length} clauses are shown`,
  );
});
