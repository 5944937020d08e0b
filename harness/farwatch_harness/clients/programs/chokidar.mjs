// SPDX-License-Identifier: Apache-2.0
// node chokidar.mjs MODULE DIRECTORY: prints what chokidar reports.
import { createRequire } from "node:module";
const [module, directory] = process.argv.slice(2);
const chokidar = await import(createRequire(process.cwd() + "/").resolve(module));
const watcher = (chokidar.watch ?? chokidar.default.watch)(directory, { ignoreInitial: true });
watcher.on("all", (event, path) => console.log(event, path));
watcher.on("error", (error) => console.log("error", error.message));
watcher.on("ready", () => console.log("READY"));
