// SPDX-License-Identifier: Apache-2.0
// node webpack.mjs DIRECTORY: bundles all texts of the directory, and prints what webpack rebuilds.
import { mkdtempSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
const webpack = createRequire(process.cwd() + "/")("webpack");
const directory = process.argv[2];
const own = mkdtempSync(`${tmpdir()}/webpack-`);
writeFileSync(`${own}/entry.js`, `require.context(${JSON.stringify(directory)}, true, /[.]txt$/)`);
const compiler = webpack({
    mode: "none",
    context: own,
    entry: `${own}/entry.js`,
    output: { path: `${own}/out` },
    module: { rules: [{ test: /[.]txt$/, type: "asset/source" }] },
});
let ready = false;
compiler.watch({ aggregateTimeout: 200 }, (error, stats) => {
    if (error || stats.hasErrors()) console.log("error", error ?? stats.toString("errors-only"));
    for (const path of compiler.modifiedFiles ?? []) console.log("rebuilt for", path);
    for (const path of compiler.removedFiles ?? []) console.log("rebuilt without", path);
    // The files are watched in the turns after the first build.
    if (!ready) setTimeout(() => console.log("READY"), 3000);
    ready = true;
});
