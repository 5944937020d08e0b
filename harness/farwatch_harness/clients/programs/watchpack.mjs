// SPDX-License-Identifier: Apache-2.0
// node watchpack.mjs DIRECTORY: prints what watchpack reports, the watcher of webpack.
import { createRequire } from "node:module";
const Watchpack = createRequire(process.cwd() + "/")("watchpack");
const watcher = new Watchpack({ aggregateTimeout: 200 });
watcher.on("change", (path) => console.log("change", path));
watcher.on("remove", (path) => console.log("remove", path));
watcher.watch({ directories: [process.argv[2]], startTime: Date.now() });
// It has no event for this: the first scan ends within its own next turns.
setTimeout(() => console.log("READY"), 3000);
