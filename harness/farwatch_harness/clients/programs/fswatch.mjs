// SPDX-License-Identifier: Apache-2.0
// node fswatch.mjs DIRECTORY: prints what node's fs.watch reports, recursively.
import { watch } from "node:fs";
watch(process.argv[2], { recursive: true }, (event, name) => console.log(event, name));
setTimeout(() => console.log("READY"), 1000);
