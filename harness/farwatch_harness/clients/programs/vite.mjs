// SPDX-License-Identifier: Apache-2.0
// node vite.mjs DIRECTORY: runs vite's development server there, and prints what it reacts to.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { tmpdir } from "node:os";
const found = createRequire(process.cwd() + "/").resolve("vite");
const { createServer } = await import(pathToFileURL(found));
const server = await createServer({
    root: process.argv[2],
    configFile: false,
    appType: "custom",
    cacheDir: `${tmpdir()}/vite-${process.pid}`,
    logLevel: "error",
    server: { middlewareMode: true, hmr: false, ws: false },
});
server.watcher.on("all", (event, path) => console.log(event, path));
// Its watcher may have been ready before: the first scan ends within its own next turns.
setTimeout(() => console.log("READY"), 3000);
