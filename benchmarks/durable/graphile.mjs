// A graphile-worker with its local queue, on the database that libpq's variables name; prints `ready`, and `done` once
// COUNT no-op jobs have ended and left its table.    node graphile.mjs COUNT
import { createRequire } from "node:module";
const require = createRequire(process.cwd() + "/");
const { run } = require("graphile-worker");
const { Pool } = require("pg");

const count = Number(process.argv[2]);
const pool = new Pool({ max: 12 });
let ended = 0;
const runner = await run({
  pgPool: pool,
  noHandleSignals: true,
  logger: new (require("graphile-worker").Logger)(() => () => {}),
  taskList: { noop: () => { ended += 1; } },
  preset: {
    worker: {
      concurrentJobs: 24, pollInterval: 20, maxPoolSize: 12,
      localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0,
    },
  },
});
console.log("ready");
while (ended < count) await new Promise((resolve) => setTimeout(resolve, 2));
while ((await pool.query("SELECT FROM graphile_worker._private_jobs LIMIT 1")).rowCount > 0)
  await new Promise((resolve) => setTimeout(resolve, 2));
console.log("done");
await runner.stop();
await pool.end();
