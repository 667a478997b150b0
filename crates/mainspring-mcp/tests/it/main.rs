//! Contract tests of the MCP client: real child processes that speak the real protocol.
//!
//! `servers/` holds the servers, Python with its standard library alone. Nothing here waits for
//! time to pass: a test waits for an answer, or for a process to be gone.

#[cfg(test)]
mod calls;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod misbehaviour;
#[cfg(test)]
mod processes;
#[cfg(test)]
mod support;
