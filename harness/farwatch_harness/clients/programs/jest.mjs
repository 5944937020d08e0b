// SPDX-License-Identifier: Apache-2.0
// node jest.mjs DIRECTORY: prints for which files `jest --watch` would run tests again.
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
const { default: HasteMap } = createRequire(process.cwd() + "/")("jest-haste-map");
const directory = process.argv[2];
const map = await HasteMap.create({
    cacheDirectory: tmpdir(),
    extensions: ["txt"],
    forceNodeFilesystemAPI: true,
    id: `farwatch-${process.pid}`,
    maxWorkers: 1,
    platforms: [],
    retainAllFiles: true,
    rootDir: directory,
    roots: [directory],
    useWatchman: false,
    watch: true,
});
await map.build();
map.on("change", ({ eventsQueue }) => {
    for (const { filePath, type } of eventsQueue) console.log(type, filePath);
});
console.log("READY");
