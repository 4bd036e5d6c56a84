// The JSON-lines protocol, docs/protocol.md: for each line with a request a line with the reply.

import { CallError, malformed } from "./errors.mjs";
import { Manager } from "./manager.mjs";
import { CALLS, SHAPES, isObject, isText, wrongField } from "./shapes.mjs";

const VERSION = 1;
const INTRODUCTION = {
  version: VERSION,
  name: "naive-manager",
  implementation_version: "1",
  capabilities: ["device", "prefix", "replicas", "speculative"],
  follows: ["POOL-5"],
  write_policies: ["through"],
  page_size: 4,
};

const managers = new Map(); // by number

function resultOf(request) {
  if (!isObject(request) || !isText(request.call)) throw malformed("a request names its call");
  const { call, ...fields } = request;
  const shape = SHAPES.get(call);
  if (shape === undefined) throw new CallError("UnknownCallError", `there is no call ${call}`);
  const wrong = wrongField(fields, shape);
  if (wrong !== undefined) throw malformed(`${wrong} is missing, unknown or of a wrong type`);

  if (call === "hello") return introduce(fields);
  if (call === "open") return open(fields);
  const manager = managers.get(fields.manager);
  if (manager === undefined) throw new CallError("UnknownManagerError", "open() it first");
  if (call === "close") return void managers.delete(fields.manager);
  if (manager.closed && call !== "shutdown") {
    throw new CallError("ManagerClosedError", "the manager was shut down; open() another one");
  }
  return manager[call](fields);
}

function introduce({ version }) {
  if (version === VERSION) return INTRODUCTION;
  throw malformed(`version is ${version}; this manager speaks version ${VERSION}`);
}

function open({ manager, setup }) {
  if (managers.has(manager)) throw malformed(`manager ${manager} is open; close() it first`);
  managers.set(manager, new Manager(setup));
  return { calls: Object.keys(CALLS), slot_nbytes: null };
}

function parse(line) {
  // Numbers are exact up to 2^53 here, and tokens go up to 2^63.
  const isHuge = (value) => Number.isInteger(value) && !Number.isSafeInteger(value);
  const exact = (_, value, { source }) => (isHuge(value) ? BigInt(source) : value);
  try {
    const json = new TextDecoder("utf-8", { fatal: true }).decode(line);
    return /\d{16}/.test(json) ? JSON.parse(json, exact) : JSON.parse(json);
  } catch (error) {
    throw malformed(`the line is no JSON: ${error.message}`);
  }
}

function replyTo(line) {
  try {
    return { result: resultOf(parse(line)) ?? null };
  } catch (error) {
    if (!(error instanceof CallError)) console.error(error); // a bug of ours
    const { name, message, fields = {} } = error;
    return { error: { name, message, fields } };
  }
}

if (Number.parseInt(process.versions.node) < 22) {
  console.error(`Node.js ${process.versions.node} is too old: JSON.parse gives no exact numbers`);
  process.exit(1);
}

let parts = []; // of a line that has not ended yet
process.stdin.on("data", (data) => {
  let start = 0;
  for (let end = data.indexOf("\n"); end >= 0; end = data.indexOf("\n", start)) {
    const line = Buffer.concat([...parts, data.subarray(start, end)]);
    process.stdout.write(JSON.stringify(replyTo(line)) + "\n");
    parts = [];
    start = end + 1;
  }
  parts.push(data.subarray(start));
});
