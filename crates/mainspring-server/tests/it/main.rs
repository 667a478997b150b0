//! The gateway over real sockets: clients on one side, a model server on the other, both of which
//! also behave badly.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod answers;
mod limits;
mod refusals;
mod support;
