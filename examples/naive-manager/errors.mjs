// Errors, as replies carry them.

/** An error by its name in reference/errors.py or docs/protocol.md, with that class's fields. */
export class CallError extends Error {
  constructor(name, message, fields = {}) {
    super(message);
    Object.assign(this, { name, fields });
  }
}

export const malformed = (message) => new CallError("MalformedRequestError", message);
