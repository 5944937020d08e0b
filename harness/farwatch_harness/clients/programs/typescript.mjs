// SPDX-License-Identifier: Apache-2.0
// node typescript.mjs DIRECTORY: prints what `tsc --watch` would look at again.
import { readdirSync } from "node:fs";
import { createRequire } from "node:module";
const ts = createRequire(process.cwd() + "/")("typescript");
const directory = process.argv[2];
// It watches the directory for what comes and goes, and each file that it has read.
ts.sys.watchDirectory(directory, (path) => console.log("directory", path), true);
for (const entry of readdirSync(directory, { recursive: true, withFileTypes: true })) {
    const file = `${entry.parentPath ?? entry.path}/${entry.name}`;
    if (entry.isFile())
        ts.sys.watchFile(file, (path, kind) => console.log(ts.FileWatcherEventKind[kind], path));
}
console.log("READY");
