import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { IoFlag, IoKind, native } from '../../lib/native/index.ts';
import { PoolEngine } from '../../lib/reactor/pool-engine.ts';
import { UringEngine } from '../../lib/reactor/uring-engine.ts';

const NOTHING = { offset: 0, length: 0 };

const ENGINES = {
  io_uring: () => new UringEngine(native, 'auto'),
  pool: () => new PoolEngine(native, 'auto'),
};

for (const [name, open] of Object.entries(ENGINES)) {
  t.test(`${name}: a sync keeps the thread waiting only where its submitter allows it`, (t) => {
    const fd = openSync(join(t.testdir(), 'file'), 'w+');
    const engine = open();
    t.teardown(() => {
      engine.close();
      closeSync(fd);
    });
    const ended: [number, number][] = [];
    const owner = engine.register({
      rowCompleted: (token, result) => ended.push([token, result]),
    });

    engine.table.push(owner, 1, IoKind.Sync, fd, NOTHING, 0, 0);
    engine.submit();
    t.same(ended, [[1, 0]], 'done when submitted');
    t.equal(engine.inFlight, 0);

    engine.table.push(owner, 2, IoKind.Sync, fd, NOTHING, 0, IoFlag.MayBlock);
    engine.submit();
    t.equal(engine.inFlight, 1, 'handed out');
    while (engine.inFlight > 0) engine.wait(-1, () => {});
    t.same(ended.at(-1), [2, 0]);
    t.end();
  });
}
