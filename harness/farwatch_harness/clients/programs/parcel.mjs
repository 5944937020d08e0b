// SPDX-License-Identifier: Apache-2.0
// node parcel.mjs DIRECTORY: prints what @parcel/watcher reports, the watcher of VS Code.
import { createRequire } from "node:module";
const watcher = createRequire(process.cwd() + "/")("@parcel/watcher");
await watcher.subscribe(process.argv[2], (error, events) => {
  if (error) console.log("error", error.message);
  for (const event of events ?? []) console.log(event.type, event.path);
});
console.log("READY");
