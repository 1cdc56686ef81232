#!/usr/bin/env node
// forge expects a native `solc`; this answers the two ways forge calls one with the npm build.
"use strict";

const fs = require("node:fs");
const solc = require("solc");

if (process.argv.includes("--version")) {
  console.log("solc, the solidity compiler commandline interface");
  console.log(`Version: ${solc.version()}`);
} else if (process.argv.includes("--standard-json")) {
  // forge puts every source into the input, so no import callback is needed.
  process.stdout.write(solc.compile(fs.readFileSync(0, "utf8")));
} else {
  console.error("usage: solc.js --version | --standard-json < input.json");
  process.exitCode = 64;
}
